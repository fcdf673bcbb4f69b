package volumes

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// file is one file of a volume that is made from objects.
type file struct {
	data []byte
	mode int32
	uid  *int64 // owner, root if nil
}

// payload is a volume's files by relative path.
type payload map[string]file

// content is a volume that is made from objects and kept up to date.
type content struct {
	dir     string // absolute
	field   string // JSON name of the source
	collect func(ctx context.Context) (payload, error)
}

// The API server's default modes, for pods that did not come through it.
const defaultMode int32 = 0o644

// content returns how to make the volume, if it is of such a kind.
func (v volume) content() (content, bool) {
	memory := v.m.memoryDir(string(v.pod.UID))
	disk := v.m.diskDir(string(v.pod.UID))
	c := content{field: v.kind()}
	switch src := v.spec.VolumeSource; {
	case src.ConfigMap != nil:
		c.dir = filepath.Join(disk, dirConfigMap, v.spec.Name)
		c.collect = func(ctx context.Context) (payload, error) {
			s := src.ConfigMap
			return v.configMap(ctx, s.Name, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
		}
	case src.Secret != nil:
		c.dir = filepath.Join(memory, dirSecret, v.spec.Name)
		c.collect = func(ctx context.Context) (payload, error) {
			s := src.Secret
			return v.secret(ctx, s.SecretName, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
		}
	case src.DownwardAPI != nil:
		c.dir = filepath.Join(memory, dirDownward, v.spec.Name)
		c.collect = func(context.Context) (payload, error) {
			return v.downward(src.DownwardAPI.Items, mode(src.DownwardAPI.DefaultMode))
		}
	case src.Projected != nil:
		c.dir = filepath.Join(memory, dirProjected, v.spec.Name)
		c.collect = func(ctx context.Context) (payload, error) { return v.projected(ctx, src.Projected) }
	default:
		return c, false
	}
	return c, true
}

func mode(m *int32) int32 {
	if m == nil {
		return defaultMode
	}
	return *m
}

func isTrue(b *bool) bool { return b != nil && *b }

// prepareContent renders the volume. Once a volume was complete, a failure to refresh it does
// not stop a container: with a kubelet, too, the old content stays.
func (v volume) prepareContent(ctx context.Context, c content) (Mounted, error) {
	mounted := Mounted{Path: c.dir, Readonly: true, Relabel: true}
	err := v.render(ctx, c)
	if err == nil {
		return mounted, nil
	}
	if populated(c.dir) {
		v.m.log.WarnContext(ctx, "Volume not refreshed", "pod", v.pod.Namespace+"/"+v.pod.Name,
			"uid", string(v.pod.UID), "volume", v.spec.Name, "error", err)
		return mounted, nil
	}
	return Mounted{}, err
}

// render collects the files and writes them if they changed.
func (v volume) render(ctx context.Context, c content) error {
	files, err := c.collect(ctx)
	if err != nil {
		var located *Error
		if errors.As(err, &located) {
			return err
		}
		return v.fail(c.field, err)
	}
	w := writer{dir: c.dir, fsGroup: v.info.FSGroup, nested: v.nestedMounts(), labels: v.m.opts.Labels}
	if err := w.write(files); err != nil {
		return v.fail(c.field, err)
	}
	return nil
}

func (v volume) configMap(ctx context.Context, name string, items []corev1.KeyToPath, mode int32, optional bool) (payload, error) {
	cm, err := v.m.opts.Objects.ConfigMap(ctx, v.pod.Namespace, name)
	if err != nil {
		if !optional || !apierrors.IsNotFound(err) {
			return nil, err
		}
		cm = &corev1.ConfigMap{}
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, s := range cm.Data {
		data[k] = []byte(s)
	}
	for k, b := range cm.BinaryData {
		data[k] = b
	}
	return pick(data, items, mode, optional, "configmap references non-existent config key: %s")
}

func (v volume) secret(ctx context.Context, name string, items []corev1.KeyToPath, mode int32, optional bool) (payload, error) {
	s, err := v.m.opts.Objects.Secret(ctx, v.pod.Namespace, name)
	if err != nil {
		if !optional || !apierrors.IsNotFound(err) {
			return nil, err
		}
		s = &corev1.Secret{}
	}
	return pick(s.Data, items, mode, optional, "references non-existent secret key: %s")
}

// pick applies items: all keys under their own names without, the named ones with.
func pick(data map[string][]byte, items []corev1.KeyToPath, mode int32, optional bool, missing string) (payload, error) {
	files := payload{}
	if len(items) == 0 {
		for k, b := range data {
			files[k] = file{data: b, mode: mode}
		}
		return files, nil
	}
	for _, item := range items {
		b, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf(missing, item.Key)
		}
		f := file{data: b, mode: mode}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		files[item.Path] = f
	}
	return files, nil
}

// projected merges its sources, later ones over earlier ones. None waits for what another one is
// asking a signer for.
func (v volume) projected(ctx context.Context, src *corev1.ProjectedVolumeSource) (payload, error) {
	parts := make([]payload, len(src.Sources))
	err := sideBySide(len(parts), func(i int) (err error) {
		if parts[i], err = v.projection(ctx, src, i); err != nil {
			return v.fail(fmt.Sprintf("projected.sources[%d]%s", i, projectionField(&src.Sources[i])), err)
		}
		return nil
	})
	files := payload{}
	for _, part := range parts {
		for p, f := range part {
			files[path.Clean(p)] = f
		}
	}
	return files, err
}

func (v volume) projection(ctx context.Context, src *corev1.ProjectedVolumeSource, index int) (payload, error) {
	mode := mode(src.DefaultMode)
	switch s := &src.Sources[index]; {
	case s.ConfigMap != nil:
		return v.configMap(ctx, s.ConfigMap.Name, s.ConfigMap.Items, mode, isTrue(s.ConfigMap.Optional))
	case s.Secret != nil:
		return v.secret(ctx, s.Secret.Name, s.Secret.Items, mode, isTrue(s.Secret.Optional))
	case s.DownwardAPI != nil:
		return v.downward(s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		return v.token(ctx, s.ServiceAccountToken, mode)
	case s.ClusterTrustBundle != nil && v.m.opts.TrustBundles != nil:
		return v.trustBundle(ctx, s.ClusterTrustBundle, mode)
	case s.PodCertificate != nil && v.m.opts.Certificates != nil:
		return v.podCertificate(ctx, s.PodCertificate, index, mode)
	}
	return nil, unsupportedSource(setField(&src.Sources[index]))
}

// unsupportedSource refuses a source by its JSON name.
func unsupportedSource(name string) error {
	return fmt.Errorf("sources of type %s are not supported by this node", name)
}

// projectionField is the JSON name of the source that is set, with a dot before it.
func projectionField(s *corev1.VolumeProjection) string { return "." + setField(s) }

// defaultTokenSeconds is the API's default for expirationSeconds.
const defaultTokenSeconds = 3600

// token is the service account's token.
func (v volume) token(ctx context.Context, s *corev1.ServiceAccountTokenProjection, mode int32) (payload, error) {
	seconds := int64(defaultTokenSeconds)
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	token, err := v.m.opts.Objects.Token(ctx, v.pod, s.Audience, seconds)
	if err != nil {
		return nil, err
	}
	return payload{s.Path: v.owned([]byte(token), mode)}, nil
}

// owned is a file for the pod's user when that is one user, and for the fsGroup when there is one;
// only else it has the mode.
func (v volume) owned(data []byte, mode int32) file {
	user := podUser(v.pod)
	if user != nil || v.info.FSGroup != nil {
		mode = 0o600
	}
	return file{data: data, mode: mode, uid: user}
}

// podUser is the one user that all containers run as, nil when the pod does not say or they differ.
func podUser(pod *corev1.Pod) *int64 {
	var user *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			u := runAsUser(pod, &list[i])
			if u == nil || user != nil && *user != *u {
				return nil
			}
			user = u
		}
	}
	return user
}

func runAsUser(pod *corev1.Pod, c *corev1.Container) *int64 {
	if sc := c.SecurityContext; sc != nil && sc.RunAsUser != nil {
		return sc.RunAsUser
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.RunAsUser
	}
	return nil
}
