package provider

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
)

// fakeAppArmor has one profile, and loads the default one unless err says why not.
type fakeAppArmor struct{ err error }

func (f fakeAppArmor) EnsureDefault() (string, error)   { return "the-default", f.err }
func (f fakeAppArmor) Loaded(name string) (bool, error) { return name == "there", nil }

func TestAppArmorOfContainers(t *testing.T) {
	localhost := func(name string) *corev1.AppArmorProfile {
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	explicit := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	missing := errors.New("no parser")
	for _, test := range []struct {
		name    string
		host    AppArmor
		profile *corev1.AppArmorProfile
		want    string // the profile, or the waiting message after "!"
	}{
		{"default", fakeAppArmor{}, nil, "the-default"},
		{"default cannot be had", fakeAppArmor{missing}, nil, ""},
		{"explicit default cannot be had", fakeAppArmor{missing}, explicit, "!no parser"},
		{"explicit default", fakeAppArmor{}, explicit, "the-default"},
		{"localhost", fakeAppArmor{missing}, localhost("there"), "there"},
		{"localhost that is not loaded", fakeAppArmor{}, localhost("gone"), "!apparmor profile not found gone"},
		{"no AppArmor", nil, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.facts = func(deps *Deps) { deps.AppArmor, deps.Node.AppArmor = test.host, test.host != nil }
				w.boot("")
				w.create("a", func(pod *corev1.Pod) {
					pod.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: test.profile}
				})
				if message, refused := strings.CutPrefix(test.want, "!"); refused {
					w.until("refused", func() bool {
						pod, _ := w.get("a")
						if len(pod.Status.ContainerStatuses) == 0 {
							return false
						}
						waiting := pod.Status.ContainerStatuses[0].State.Waiting
						return waiting != nil && waiting.Reason == "CreateContainerError" && strings.Contains(waiting.Message, message)
					})
					return
				}
				w.until("Running", w.podIs("a", corev1.PodRunning))
				if got := w.launched("app").AppArmor; got != test.want {
					t.Errorf("confined by %q, want %q", got, test.want)
				}
			})
		})
	}
}
