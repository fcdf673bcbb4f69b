package volumes

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// otherKind finds the JSON name of whatever source is set: in-tree types of clouds and storage
// systems that no node supports any more, and types that are newer than this code's list.
func otherKind(src *corev1.VolumeSource) string {
	v := reflect.ValueOf(src).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Pointer && !v.Field(i).IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}
