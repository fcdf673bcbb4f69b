package objects

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1alpha1 "k8s.io/api/certificates/v1alpha1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// served is what a cluster says that it serves.
func served(version string, resources ...string) []*metav1.APIResourceList {
	list := &metav1.APIResourceList{GroupVersion: "certificates.k8s.io/" + version}
	for _, r := range resources {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: r})
	}
	return []*metav1.APIResourceList{list}
}

// trustBundle is one of the version, with its text as its resourceVersion.
func trustBundle(version, name, signer, text string, labels ...string) runtime.Object {
	meta := metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: text, Labels: map[string]string{}}
	for _, l := range labels {
		meta.Labels[l] = "true"
	}
	if version == "v1alpha1" {
		return &certificatesv1alpha1.ClusterTrustBundle{ObjectMeta: meta, Spec: certificatesv1alpha1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
	}
	return &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: meta, Spec: certificatesv1beta1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
}

func podOfSources(uid string, sources ...corev1.VolumeProjection) *corev1.Pod {
	pod := podWith(uid)
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}}}
	return pod
}

func named(name string) *corev1.ClusterTrustBundleProjection {
	return &corev1.ClusterTrustBundleProjection{Name: &name}
}

func signedBy(signer string, selector *metav1.LabelSelector) *corev1.ClusterTrustBundleProjection {
	return &corev1.ClusterTrustBundleProjection{SignerName: &signer, LabelSelector: selector}
}

// toldNow lists the pods that were told until nothing happens any more, each once.
func toldNow(told chan string) (uids []string) {
	synctest.Wait()
	for len(told) > 0 {
		uids = append(uids, <-told)
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

func TestTrustBundlesOfTheCluster(t *testing.T) {
	for _, version := range []string{"v1beta1", "v1alpha1"} {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testTrustBundlesOfTheCluster(t, version) })
		})
	}
}

func testTrustBundlesOfTheCluster(t *testing.T, version string) {
	c, client, told := testSource(t,
		trustBundle(version, "plain", "", "1"), trustBundle(version, "s:one", "s", "2", "live"),
		trustBundle(version, "s:two", "s", "3"), trustBundle(version, "o:one", "o", "4", "live"))
	client.Resources = served(version, "clustertrustbundles")
	c.Register(podOfSources("name", corev1.VolumeProjection{ClusterTrustBundle: named("plain")}))
	c.Register(podOfSources("signer", corev1.VolumeProjection{ClusterTrustBundle: signedBy("s", &metav1.LabelSelector{})}))
	live := &metav1.LabelSelector{MatchLabels: map[string]string{"live": "true"}}
	for name, tc := range map[string]struct {
		of   *corev1.ClusterTrustBundleProjection
		want string
		err  string
	}{
		"by name":           {of: named("plain"), want: "1"},
		"of another name":   {of: named("none")},
		"all of a signer":   {of: signedBy("s", &metav1.LabelSelector{}), want: "2 3"},
		"by labels":         {of: signedBy("s", live), want: "2"},
		"no selector":       {of: signedBy("s", nil)},
		"no such signer":    {of: signedBy("x", &metav1.LabelSelector{})},
		"nothing is chosen": {of: &corev1.ClusterTrustBundleProjection{}, err: "requires either name or signerName"},
		"bad selector": {
			of:  signedBy("s", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}),
			err: "parse labelSelector",
		},
		"long selector": {
			of: signedBy("s", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "a", Operator: metav1.LabelSelectorOpIn, Values: distinct(maxSelector / 40)},
			}}),
			err: "is larger than 102400",
		},
	} {
		texts, err := c.TrustBundles(t.Context(), tc.of)
		if got := strings.Join(texts, " "); got != tc.want || (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// Who refers to what changes is told, and nobody else.
	toldNow(told)
	resource := schema.GroupVersionResource{Group: "certificates.k8s.io", Version: version, Resource: "clustertrustbundles"}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return client.Tracker().Update(resource, trustBundle(version, "plain", "", "9"), "") }, "name"},
		{func() error { return client.Tracker().Update(resource, trustBundle(version, "s:two", "s", "8"), "") }, "signer"},
		{func() error { return client.Tracker().Update(resource, trustBundle(version, "o:one", "o", "7"), "") }, ""},
		{func() error { return client.Tracker().Create(resource, trustBundle(version, "s:three", "s", "6"), "") }, "signer"},
		{func() error { return client.Tracker().Delete(resource, "", "plain") }, "name"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(toldNow(told), " "); got != step.want {
			t.Errorf("told %q, want %q", got, step.want)
		}
	}
	if texts, err := c.TrustBundles(t.Context(), signedBy("s", &metav1.LabelSelector{})); err != nil || strings.Join(texts, " ") != "2 6 8" {
		t.Errorf("after changes: %q, %v", texts, err)
	}
	// The watch ends with the last pod that needs it.
	c.Unregister("name")
	if c.collected(kindBundle) == nil {
		t.Error("no watch although a pod refers to bundles")
	}
	c.Unregister("signer")
	if c.collected(kindBundle) != nil {
		t.Error("a watch that nobody needs")
	}
	c.Wait()
}

// distinct are n label values.
func distinct(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("v%040d", i)
	}
	return out
}

func TestAPIThatIsNotServed(t *testing.T) { synctest.Test(t, testAPIThatIsNotServed) }

func testAPIThatIsNotServed(t *testing.T) {
	// They sleep until some time after the process's start, which in here is decades away.
	handlers := utilruntime.ErrorHandlers
	t.Cleanup(func() { utilruntime.ErrorHandlers = handlers }) //nolint:reassign // there is no other way to have none
	utilruntime.ErrorHandlers = nil                            //nolint:reassign // as above
	c, client, told := testSource(t, trustBundle("v1beta1", "a", "", "1"))
	client.Resources = served("v1beta1", "certificatesigningrequests")
	c.Register(podOfSources("p", corev1.VolumeProjection{ClusterTrustBundle: named("a")}))
	begun := time.Now()
	_, err := c.TrustBundles(t.Context(), named("a"))
	var notServed *NotServedError
	if !errors.As(err, &notServed) || time.Since(begun) != 0 {
		t.Fatalf("%v after %v", err, time.Since(begun))
	}
	if want := "the cluster does not serve clustertrustbundles of certificates.k8s.io (v1beta1, v1alpha1)"; err.Error() != want {
		t.Errorf("error %q", err)
	}
	// The API server is started anew with the API.
	synctest.Wait()
	client.Lock()
	client.Resources = served("v1beta1", "clustertrustbundles")
	client.Unlock()
	time.Sleep(2 * time.Minute)
	if got := toldNow(told); !slices.Equal(got, []string{"p"}) {
		t.Errorf("told %v", got)
	}
	if texts, err := c.TrustBundles(t.Context(), named("a")); err != nil || !slices.Equal(texts, []string{"1"}) {
		t.Errorf("once it is served: %q, %v", texts, err)
	}
}
