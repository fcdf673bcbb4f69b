package podplan

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// provenBy names for each field of what decides on a container the test that shows what becomes of
// it, or, after "no: ", why there is nothing to show. A field that the API gets is missed here.
var provenBy = []struct {
	of     any
	fields map[string]string
}{
	{corev1.SecurityContext{}, map[string]string{
		"capabilities": "TestMachineIsolation", "privileged": "TestMachineIsolation", "seLinuxOptions": "TestV2SELinux",
		"windowsOptions": "no: of Windows", "runAsUser": "TestUsersThatMayBeRoot", "runAsGroup": "TestUserInStatus",
		"runAsNonRoot": "TestUsersThatMayBeRoot", "readOnlyRootFilesystem": "TestFieldsReachTheLauncher",
		"allowPrivilegeEscalation": "TestMachineIsolation", "procMount": "TestUnmaskedProc",
		"seccompProfile": "TestSeccompProfiles", "appArmorProfile": "TestV2AppArmor",
	}},
	{corev1.PodSecurityContext{}, map[string]string{
		"seLinuxOptions": "TestV2SELinux", "windowsOptions": "no: of Windows", "runAsUser": "TestUsersThatMayBeRoot",
		"runAsGroup": "TestUserInStatus", "runAsNonRoot": "TestUsersThatMayBeRoot", "supplementalGroups": "TestUserInStatus",
		"supplementalGroupsPolicy": "TestUserInStatus", "fsGroup": "TestGroupOfALocalVolume", "sysctls": "TestMachineInside",
		"fsGroupChangePolicy": "TestFSGroupChangePolicy", "seccompProfile": "TestSeccompProfiles", "appArmorProfile": "TestV2AppArmor",
		"seLinuxChangePolicy": "TestMountLabels",
	}},
	{corev1.Container{}, map[string]string{
		"name": "TestFieldsReachTheLauncher", "image": "TestPullAndRestart", "command": "TestFieldsReachTheLauncher", "args": "TestFieldsReachTheLauncher",
		"workingDir": "TestFieldsReachTheLauncher", "ports": "TestHostPorts", "envFrom": "TestEnvironment", "env": "TestEnvironment",
		"resources": "TestMachineLimits", "resizePolicy": "TestResizeInPlaceOrByRestart", "restartPolicy": "TestInitContainersAndSidecarsKeepTheirOrder",
		"restartPolicyRules": "TestRestartRulesOfAContainer", "volumeMounts": "TestMachineMounts", "volumeDevices": "TestVolumeDevices",
		"livenessProbe": "TestProber", "readinessProbe": "TestProber", "startupProbe": "TestProber", "lifecycle": "TestPreStopComesBeforeTheSignal",
		"terminationMessagePath": "TestFieldsReachTheLauncher", "terminationMessagePolicy": "TestTerminationMessages",
		"imagePullPolicy": "TestPullAndRestart", "securityContext": "TestMachineIsolation", "stdin": "TestAttachStdinOnce",
		"stdinOnce": "TestAttachStdinOnce", "tty": "TestFieldsReachTheLauncher",
	}},
	{corev1.Lifecycle{}, map[string]string{
		"postStart": "TestPostStartHoldsTheNextContainerBack", "preStop": "TestPreStopComesBeforeTheSignal", "stopSignal": "TestStopSignalIsShownWhereItIsSet",
	}},
	{corev1.VolumeMount{}, map[string]string{
		"name": "TestFieldsReachTheLauncher", "readOnly": "TestFieldsReachTheLauncher", "mountPath": "TestFieldsReachTheLauncher",
		"recursiveReadOnly": "TestReadOnlyMounts",
		"subPath":           "TestSubPathsStayInTheirVolume", "subPathExpr": "TestBadSubPathHealsWhenItsAnnotationChanges",
		"mountPropagation": "TestFieldsReachTheLauncher",
	}},
	{corev1.VolumeDevice{}, map[string]string{"name": "TestVolumeDevices", "devicePath": "TestVolumeDevices"}},
	{corev1.EmptyDirVolumeSource{}, map[string]string{"medium": "TestEmptyDir", "sizeLimit": "TestEmptyDir"}},
	{corev1.HostPathVolumeSource{}, map[string]string{"path": "TestHostPath", "type": "TestHostPath"}},
	{corev1.ConfigMapVolumeSource{}, map[string]string{
		"": "no: its name", "items": "TestProjected", "defaultMode": "TestConfigMapLifecycle", "optional": "TestMissingObjects",
	}},
	{corev1.SecretVolumeSource{}, map[string]string{
		"secretName": "TestSecretOnMemoryWithFSGroup", "items": "TestProjected", "defaultMode": "TestSecretOnMemoryWithFSGroup", "optional": "TestMissingObjects",
	}},
	{corev1.VolumeProjection{}, map[string]string{
		"secret": "TestProjected", "downwardAPI": "TestProjected", "configMap": "TestProjected", "serviceAccountToken": "TestProjected",
		"clusterTrustBundle": "TestTrustBundles", "podCertificate": "TestPodCertificates",
	}},
	{corev1.ClusterTrustBundleProjection{}, map[string]string{
		"name": "TestTrustBundlesOfTheCluster", "signerName": "TestTrustBundlesOfTheCluster", "labelSelector": "TestTrustBundlesOfTheCluster",
		"optional": "TestTrustBundles", "path": "TestTrustBundles",
	}},
	{corev1.PodCertificateProjection{}, map[string]string{
		"signerName": "TestCertificateOfAPod", "keyType": "TestKeysOfPods", "maxExpirationSeconds": "TestCertificateOfAPod", "userAnnotations": "TestCertificateOfAPod",
		"credentialBundlePath": "TestPodCertificates", "keyPath": "TestPodCertificates", "certificateChainPath": "TestPodCertificates",
	}},
	{corev1.ServiceAccountTokenProjection{}, map[string]string{"audience": "TestProjected", "expirationSeconds": "TestProjected", "path": "TestProjected"}},
	{corev1.ImageVolumeSource{}, map[string]string{"reference": "TestImageVolumes", "pullPolicy": "TestImageVolumes"}},
	{corev1.NFSVolumeSource{}, map[string]string{"server": "TestNFSMount", "path": "TestNFSMount", "readOnly": "TestNFSMount"}},
	{corev1.LocalVolumeSource{}, map[string]string{"path": "TestClaimOfALocalDirectory", "fsType": "TestDisksOfLocalVolumes"}},
	{corev1.PersistentVolumeClaimVolumeSource{}, map[string]string{"claimName": "TestClaimOfALocalDirectory", "readOnly": "TestClaimOfALocalDirectory"}},
	{corev1.EphemeralVolumeSource{}, map[string]string{"volumeClaimTemplate": "no: the cluster makes the claim of it"}},
	{corev1.CSIVolumeSource{}, map[string]string{
		"driver": "TestInlineVolume", "readOnly": "TestFieldsReachTheDriver", "fsType": "TestFieldsReachTheDriver",
		"volumeAttributes": "TestFieldsReachTheDriver", "nodePublishSecretRef": "TestFieldsReachTheDriver",
	}},
	{corev1.CSIPersistentVolumeSource{}, map[string]string{
		"driver": "TestUnknownDriver", "volumeHandle": "TestFieldsReachTheDriver", "readOnly": "TestFieldsReachTheDriver",
		"fsType": "TestFieldsReachTheDriver", "volumeAttributes": "TestFieldsReachTheDriver", "nodeStageSecretRef": "TestFieldsReachTheDriver",
		"nodePublishSecretRef": "TestFieldsReachTheDriver", "nodeExpandSecretRef": "TestVolumesGrow",
		"controllerPublishSecretRef": "no: of the driver's controller", "controllerExpandSecretRef": "no: of the driver's controller",
	}},
	{corev1.PersistentVolumeSpec{}, map[string]string{
		"": "TestEveryTypeOfVolume", "capacity": "TestVolumesGrow", "accessModes": "TestVolumeOfOnePod", "claimRef": "TestClaimsThatCannotBeUsed",
		"mountOptions": "TestClaimOfALocalDirectory", "volumeMode": "TestClaimsThatCannotBeUsed", "nodeAffinity": "TestClaimsThatCannotBeUsed",
		"persistentVolumeReclaimPolicy": "no: the cluster's", "storageClassName": "no: the cluster's", "volumeAttributesClassName": "no: of the driver's controller",
	}},
	{storagev1.CSIDriverSpec{}, map[string]string{
		"attachRequired": "TestVolumesAreAttachedFirst", "podInfoOnMount": "TestInlineVolume", "volumeLifecycleModes": "TestInlineVolume",
		"storageCapacity": "no: the scheduler's", "fsGroupPolicy": "TestWhoAppliesFSGroup", "tokenRequests": "TestInlineVolume",
		"requiresRepublish": "TestInlineVolume", "seLinuxMount": "TestMountedWithLabel",
		"nodeAllocatableUpdatePeriodSeconds": "TestAllocatableIsKeptUpToDate", "serviceAccountTokenInSecrets": "TestTokensInSecrets",
	}},
	{nodev1.RuntimeClass{}, map[string]string{
		"": "no: type and metadata", "metadata": "no: its name is asked for", "handler": "TestRuntimeClasses", "overhead": "TestOverheadIsInTheSlice",
		"scheduling": "no: the scheduler's and the API server's",
	}},
}

// TestEveryFieldIsProven: the table has the API's fields, all of them, and tests that there are.
func TestEveryFieldIsProven(t *testing.T) {
	tests := testsOf(t, "../..")
	for _, p := range provenBy {
		kind := reflect.TypeOf(p.of)
		known := map[string]bool{}
		for i := range kind.NumField() {
			name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
			known[name] = true
			proof := p.fields[name]
			if why, none := strings.CutPrefix(proof, "no: "); none && why != "" {
				continue
			}
			if !tests[proof] {
				t.Errorf("%s.%s: there is no test %q: show what becomes of the field, or refuse it by name", kind.Name(), name, proof)
			}
		}
		for name := range p.fields {
			if !known[name] {
				t.Errorf("%s has no field %q", kind.Name(), name)
			}
		}
	}
}

// testsOf are the names of all tests below a directory.
func testsOf(t *testing.T, root string) map[string]bool {
	t.Helper()
	names, form := map[string]bool{}, regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range form.FindAllSubmatch(data, -1) {
			names[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestFieldsReachTheLauncher: each field alone makes the difference that it promises.
func TestFieldsReachTheLauncher(t *testing.T) {
	yes := true
	propagation := func(mode corev1.MountPropagationMode) func(*corev1.Container) {
		return func(c *corev1.Container) { c.VolumeMounts[0].MountPropagation = &mode }
	}
	below := func(mode corev1.RecursiveReadOnlyMode) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.VolumeMounts[0].ReadOnly, c.VolumeMounts[0].RecursiveReadOnly = true, &mode
		}
	}
	readOnly := func(m launchspec.Mount) string {
		switch {
		case !m.Readonly:
			return "no"
		case m.WritableBelow:
			return "top"
		}
		return "all"
	}
	at := func(spec launchspec.Spec, target string) launchspec.Mount {
		for _, m := range spec.Mounts {
			if m.Target == target {
				return m
			}
		}
		return launchspec.Mount{}
	}
	for name, test := range map[string]struct {
		set func(*corev1.Container)
		got func(launchspec.Spec) any
		// what it is without the field, and with it
		without, with any
	}{
		"name":    {func(c *corev1.Container) { c.Name = "other" }, func(s launchspec.Spec) any { return s.Container }, "app", "other"},
		"command": {func(c *corev1.Container) { c.Command = []string{"/x"} }, words, "/entry image", "/x"},
		"args":    {func(c *corev1.Container) { c.Args = []string{"y"} }, words, "/entry image", "/entry y"},
		"workingDir": {
			func(c *corev1.Container) { c.WorkingDir = "/work" }, func(s launchspec.Spec) any { return s.Dir }, "/image", "/work",
		},
		"tty": {func(c *corev1.Container) { c.TTY = true }, func(s launchspec.Spec) any { return s.TTY }, false, true},
		"readOnlyRootFilesystem": {
			func(c *corev1.Container) {
				c.SecurityContext = &corev1.SecurityContext{ReadOnlyRootFilesystem: &yes}
			},
			func(s launchspec.Spec) any { return [2]bool{s.Root.Readonly, at(s, "/etc/hosts").Readonly} },
			[2]bool{},
			[2]bool{true, true},
		},
		"terminationMessagePath": {
			func(c *corev1.Container) { c.TerminationMessagePath = "/message" }, func(s launchspec.Spec) any { return at(s, "/message").Source }, "", "/log",
		},
		"volumeMounts.mountPath": {
			func(c *corev1.Container) { c.VolumeMounts[0].MountPath = "/there" }, func(s launchspec.Spec) any { return at(s, "/there").Source }, "", "/volume",
		},
		"volumeMounts.readOnly": {
			func(c *corev1.Container) { c.VolumeMounts[0].ReadOnly = true }, func(s launchspec.Spec) any { return at(s, "/data").Readonly }, false, true,
		},
		"volumeMounts.readOnly, not what is mounted below": {
			func(c *corev1.Container) { c.VolumeMounts[0].ReadOnly = true }, func(s launchspec.Spec) any { return at(s, "/data").WritableBelow }, false, true,
		},
		"volumeMounts.recursiveReadOnly": {
			below(corev1.RecursiveReadOnlyEnabled), func(s launchspec.Spec) any { return readOnly(at(s, "/data")) }, "no", "all",
		},
		"volumeMounts.recursiveReadOnly, if possible": {
			below(corev1.RecursiveReadOnlyIfPossible), func(s launchspec.Spec) any { return readOnly(at(s, "/data")) }, "no", "all",
		},
		"volumeMounts.recursiveReadOnly, disabled": {
			below(corev1.RecursiveReadOnlyDisabled), func(s launchspec.Spec) any { return readOnly(at(s, "/data")) }, "no", "top",
		},
		"volumeMounts.mountPropagation, in": {
			propagation(corev1.MountPropagationHostToContainer), func(s launchspec.Spec) any { return at(s, "/data").Propagation },
			"", "rslave",
		},
		"volumeMounts.mountPropagation, both ways": {
			propagation(corev1.MountPropagationBidirectional), func(s launchspec.Spec) any { return at(s, "/data").Propagation },
			"", "rshared",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, set := range []bool{false, true} {
				pod, want := basePod(), test.without
				c := &pod.Spec.Containers[0]
				c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
				if set {
					test.set(c)
					want = test.with
				}
				launch, err := Build(pod, Containers(pod)[0], Start{Container: c.Name},
					PodInputs{Hosts: "/hosts", Volumes: map[string]Volume{"data": {Path: "/volume"}}},
					ContainerInputs{TerminationLog: "/log", Image: Image{Entrypoint: []string{"/entry"}, Cmd: []string{"image"}, WorkingDir: "/image"}})
				if err != nil {
					t.Fatal(err)
				}
				if got := test.got(launch.Spec); got != want {
					t.Errorf("set %t: %v, want %v", set, got, want)
				}
			}
		})
	}
}

func words(s launchspec.Spec) any {
	var list []string
	for _, arg := range s.Args {
		list = append(list, string(arg))
	}
	return strings.Join(list, " ")
}
