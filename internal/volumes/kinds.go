package volumes

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// kind is the JSON name of the volume's source.
func (v volume) kind() string { return setField(&v.spec.VolumeSource) }

// pvKind is the JSON name of the source that is set.
func pvKind(src *corev1.PersistentVolumeSource) string { return setField(src) }

// setField is the JSON name of the only field that is set in one of the API's unions: also of types
// that are newer than this code.
func setField(union any) string {
	v := reflect.ValueOf(union).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Pointer && !v.Field(i).IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}
