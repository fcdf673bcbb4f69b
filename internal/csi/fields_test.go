package csi

import (
	"reflect"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// TestFieldsReachTheDriver: each field of a volume makes the difference in what the driver is asked
// that it promises.
func TestFieldsReachTheDriver(t *testing.T) {
	stageSecret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "vault", Name: "stage"}, Data: map[string][]byte{"stage": []byte("1")}}
	own := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "own"}, Data: map[string][]byte{"own": []byte("2")}}
	object := csiDriver(func(s *storagev1.CSIDriverSpec) {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral}
	})
	type (
		stage   = *csispec.NodeStageVolumeRequest
		publish = *csispec.NodePublishVolumeRequest
	)
	source := func(change func(*corev1.CSIPersistentVolumeSource)) func(*Volume) {
		return func(v *Volume) { change(v.PV.Spec.CSI) }
	}
	inline := func(change func(*corev1.CSIVolumeSource)) func(*Volume) {
		return func(v *Volume) {
			v.Inline, v.PV = &corev1.CSIVolumeSource{Driver: driverName}, nil
			change(v.Inline)
		}
	}
	access := func(mode corev1.PersistentVolumeAccessMode) func(*Volume) {
		return func(v *Volume) { v.PV.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{mode} }
	}
	mode := func(_ stage, p publish) any { return p.VolumeCapability.AccessMode.Mode.String() }
	for name, c := range map[string]struct {
		change func(*Volume)
		got    func(stage, publish) any
		want   any
	}{
		"volumeHandle": {source(func(c *corev1.CSIPersistentVolumeSource) { c.VolumeHandle = "h" }), func(s stage, p publish) any { return s.VolumeId + p.VolumeId }, "hh"},
		"readOnly":     {source(func(c *corev1.CSIPersistentVolumeSource) { c.ReadOnly = true }), func(_ stage, p publish) any { return p.Readonly }, true},
		"claim readOnly": {
			func(v *Volume) { v.ReadOnly = true }, func(_ stage, p publish) any { return p.Readonly }, true,
		},
		"fsType": {
			source(func(c *corev1.CSIPersistentVolumeSource) { c.FSType = "xfs" }),
			func(s stage, p publish) any {
				return s.VolumeCapability.GetMount().FsType + p.VolumeCapability.GetMount().FsType
			}, "xfsxfs",
		},
		"volumeAttributes": {
			source(func(c *corev1.CSIPersistentVolumeSource) { c.VolumeAttributes = map[string]string{"k": "v"} }),
			func(s stage, p publish) any { return s.VolumeContext["k"] + p.VolumeContext["k"] }, "vv",
		},
		"nodeStageSecretRef": {
			source(func(c *corev1.CSIPersistentVolumeSource) {
				c.NodeStageSecretRef = &corev1.SecretReference{Namespace: "vault", Name: "stage"}
			}),
			func(s stage, p publish) any { return s.Secrets["stage"] + p.Secrets["stage"] }, "1",
		},
		"nodePublishSecretRef": {func(*Volume) {}, func(s stage, p publish) any { return s.Secrets["key"] + p.Secrets["key"] }, "value"},
		"mountOptions":         {func(v *Volume) { v.PV.Spec.MountOptions = []string{"o"} }, func(s stage, _ publish) any { return s.VolumeCapability.GetMount().MountFlags }, []string{"o"}},
		"ReadOnlyMany":         {access(corev1.ReadOnlyMany), mode, "MULTI_NODE_READER_ONLY"},
		"ReadWriteMany":        {access(corev1.ReadWriteMany), mode, "MULTI_NODE_MULTI_WRITER"},
		"ReadWriteOncePod":     {access(corev1.ReadWriteOncePod), mode, "SINGLE_NODE_WRITER"},
		"inline readOnly":      {inline(func(c *corev1.CSIVolumeSource) { c.ReadOnly = new(true) }), func(_ stage, p publish) any { return p.Readonly }, true},
		"inline fsType":        {inline(func(c *corev1.CSIVolumeSource) { c.FSType = new("xfs") }), func(_ stage, p publish) any { return p.VolumeCapability.GetMount().FsType }, "xfs"},
		"inline volumeAttributes": {
			inline(func(c *corev1.CSIVolumeSource) { c.VolumeAttributes = map[string]string{"k": "v"} }), func(_ stage, p publish) any { return p.VolumeContext["k"] }, "v",
		},
		"inline nodePublishSecretRef": {
			inline(func(c *corev1.CSIVolumeSource) { c.NodePublishSecretRef = &corev1.LocalObjectReference{Name: "own"} }),
			func(_ stage, p publish) any { return p.Secrets["own"] }, "2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			driver := newDriver(t, canStage)
			w := newWorld(t, driver, object.DeepCopy(), secret(), stageSecret, own)
			v := volumeOf("uid-a")
			c.change(&v)
			w.publish(v)
			staged := &csispec.NodeStageVolumeRequest{VolumeCapability: &csispec.VolumeCapability{}}
			if len(driver.staged) > 0 {
				staged = driver.staged[0]
			}
			if got := c.got(staged, driver.published[0]); !reflect.DeepEqual(got, c.want) {
				t.Errorf("the driver was asked for %v, want %v", got, c.want)
			}
			w.unpublish(v)
		})
	}
}

// TestTokensInSecrets: tokens are no attributes, which drivers log, where the driver wants them so.
func TestTokensInSecrets(t *testing.T) {
	driver := newDriver(t)
	w := newWorld(t, driver, secret(), csiDriver(func(s *storagev1.CSIDriverSpec) {
		s.TokenRequests, s.ServiceAccountTokenInSecrets = []storagev1.TokenRequest{{Audience: "vault"}}, new(true)
	}))
	w.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		request := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenRequest)
		request.Status.Token = "token"
		return true, request, nil
	})
	v := volumeOf("uid-a")
	w.publish(v)
	request := driver.published[0]
	if request.Secrets[tokensAttribute] == "" || request.Secrets["key"] != "value" || request.VolumeContext[tokensAttribute] != "" {
		t.Errorf("secrets %v, attributes %v", request.Secrets, request.VolumeContext)
	}
	w.unpublish(v)
}

// TestWhoAppliesFSGroup is a kubelet's table: the driver, the node or nobody.
func TestWhoAppliesFSGroup(t *testing.T) {
	rwo, rwx := corev1.ReadWriteOnce, corev1.ReadWriteMany
	for _, c := range []struct {
		policy storagev1.FSGroupPolicy
		fsType string
		mode   corev1.PersistentVolumeAccessMode
		change func(*publishing)
		want   bool
	}{
		{"", "ext4", rwo, nil, true},
		{"", "ext4", rwx, nil, false},
		{"", "", rwo, nil, false},
		{storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, "ext4", corev1.ReadWriteOncePod, nil, true},
		{storagev1.FileFSGroupPolicy, "", rwx, nil, true},
		{storagev1.NoneFSGroupPolicy, "ext4", rwo, nil, false},
		{storagev1.FileFSGroupPolicy, "", rwx, func(p *publishing) { p.v.FSGroup = nil }, false},
		{storagev1.FileFSGroupPolicy, "", rwx, func(p *publishing) { p.s.block = true }, false},
		{storagev1.FileFSGroupPolicy, "", rwx, func(p *publishing) { p.s.readOnly = true }, false},
		{storagev1.FileFSGroupPolicy, "", rwx, func(p *publishing) { p.caps = capabilities{canMountGroup: true} }, false},
	} {
		p := &publishing{v: volumeOf("uid-a")}
		p.v.FSGroup, p.s.fsType, p.v.PV.Spec.AccessModes = new(int64(5)), c.fsType, []corev1.PersistentVolumeAccessMode{c.mode}
		if c.policy != "" {
			p.spec.FSGroupPolicy = &c.policy
		}
		if c.change != nil {
			c.change(p)
		}
		if got := p.givesGroup(); got != c.want {
			t.Errorf("%+v: the node applies it: %v", c, got)
		}
	}
}
