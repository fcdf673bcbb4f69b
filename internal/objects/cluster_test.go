package objects_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

// TestAsANode uses a node's identity against a real API server: what its authorizer refuses, the
// source must not need.
func TestAsANode(t *testing.T) {
	cluster := testcluster.Start(t, testcluster.Options{})
	admin := cluster.Admin.CoreV1()
	pod := createPod(t, cluster)
	first := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cfg"}, Data: map[string]string{"k": "1"}}
	if _, err := admin.ConfigMaps("default").Create(t.Context(), first, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
	if _, err := admin.Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	node := cluster.Client(cluster.CA.Issue(t, "system:node:n1", "system:nodes"))
	src := objects.NewSource(ctx, node, objects.Options{})
	defer func() { cancel(); src.Wait() }()
	told := make(chan string, 100)
	src.OnChange(func(uid string) { told <- uid })
	src.Register(pod)

	cm, err := src.ConfigMap(ctx, "default", "cfg")
	if err != nil || cm.Data["k"] != "1" {
		t.Fatalf("cfg: %+v %v", cm, err)
	}
	if _, err := src.ConfigMap(ctx, "default", "late"); !apierrors.IsNotFound(err) {
		t.Errorf("late: %v, want NotFound", err)
	}
	if _, err := src.Secret(ctx, "default", "other"); !apierrors.IsForbidden(err) {
		t.Errorf("a secret of no pod here: %v, want Forbidden", err)
	}
	late := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}
	if _, err := admin.ConfigMaps("default").Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "late appears", func() bool { _, err := src.ConfigMap(ctx, "default", "late"); return err == nil })
	cm = cm.DeepCopy()
	cm.Data["k"] = "2"
	if _, err := admin.ConfigMaps("default").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "cfg changes", func() bool {
		cm, err := src.ConfigMap(ctx, "default", "cfg")
		return err == nil && cm.Data["k"] == "2"
	})
	if uid := <-told; uid != string(pod.UID) {
		t.Errorf("told about %s", uid)
	}

	token, err := src.Token(ctx, pod, "", 3607)
	if err != nil {
		t.Fatal(err)
	}
	if claims := payloadOf(t, token); !strings.Contains(claims, string(pod.UID)) || !strings.Contains(claims, "system:serviceaccount:default:default") {
		t.Errorf("claims %s", claims)
	}
	foreign := pod.DeepCopy()
	foreign.UID = "00000000-0000-0000-0000-000000000000"
	if _, err := src.Token(ctx, foreign, "", 3607); err == nil {
		t.Error("token for a pod that does not exist")
	}
}

func createPod(t *testing.T, cluster *testcluster.Cluster, more ...corev1.Volume) *corev1.Pod {
	t.Helper()
	api := cluster.Admin.CoreV1()
	if _, err := api.Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the default service account", func() bool {
		_, err := api.ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	volume := func(name string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: name},
		}}}
	}
	pod, err := api.Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{
			NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "x"}},
			Volumes: append(more, volume("cfg"), volume("late")),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func payloadOf(t *testing.T, jwt string) string {
	t.Helper()
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %d parts", len(parts))
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || !json.Valid(data) {
		t.Fatalf("not a JWT: %v", err)
	}
	return string(data)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
