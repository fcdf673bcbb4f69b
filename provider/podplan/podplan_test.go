package podplan

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func basePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u-1"},
		Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "app", Image: "img"}}},
	}
}

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "a", "E": ""}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"$(A)": "a", "x$(A)y$(A)": "xaya", "$$(A)": "$(A)", "$$$(A)": "$a", "$(NO)": "$(NO)", "$(E)": "", "$A": "$A",
		"$": "$", "$$": "$", "$(A": "$(A", "$($(A))": "$($(A))", "é$é": "é$é", "%d\n$(A)": "%d\na", "": "",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestSharesAndQuotaAreAKubelets(t *testing.T) {
	for milli, want := range map[int64]uint64{0: 2, 1: 2, 100: 102, 1000: 1024, 1 << 40: 262144} {
		if got := Shares(milli); got != want {
			t.Errorf("Shares(%d) = %d, want %d", milli, got, want)
		}
	}
	for milli, want := range map[int64]time.Duration{1: 10 * time.Millisecond, 250: 250 * time.Millisecond, 4000: 4 * time.Second} {
		if got := quota(milli); *got != want {
			t.Errorf("quota(%d) = %v, want %v", milli, *got, want)
		}
	}
}

func TestShutdownGraceIsThePods(t *testing.T) {
	if got := shutdownGrace(basePod()); got != 30*time.Second {
		t.Errorf("default grace %s", got)
	}
	for seconds, want := range map[int64]time.Duration{0: minShutdownGrace, 15: 15 * time.Second, 36000: maxShutdownGrace} {
		pod := basePod()
		pod.Spec.TerminationGracePeriodSeconds = &seconds
		launch, err := Build(pod, Containers(pod)[0], Start{Container: "app"}, PodInputs{}, ContainerInputs{Image: Image{Cmd: []string{"/app"}}})
		if err != nil || launch.Unit.StopTimeout != want {
			t.Errorf("grace of %d s: the unit has %s, want %s (%v)", seconds, launch.Unit.StopTimeout, want, err)
		}
	}
}

func TestSliceOfEachClass(t *testing.T) {
	limits := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	for _, tc := range []struct {
		resources corev1.ResourceRequirements
		name      string
		limited   bool
	}{
		{corev1.ResourceRequirements{}, "kubepods-besteffort-podu_1.slice", false},
		{corev1.ResourceRequirements{Requests: limits}, "kubepods-burstable-podu_1.slice", false},
		{corev1.ResourceRequirements{Requests: limits, Limits: limits}, "kubepods-podu_1.slice", true},
	} {
		pod := basePod()
		pod.Spec.Containers[0].Resources = tc.resources
		slice := PodSlice(pod, 0)
		if slice.Name != tc.name || (slice.Resources.MemoryMax != nil) != tc.limited || (slice.Resources.CPUQuota != nil) != tc.limited {
			t.Errorf("slice %+v, want %s limited %v", slice, tc.name, tc.limited)
		}
	}
}

func TestStringsThatExecveCannotTake(t *testing.T) {
	in := PodInputs{Layout: paths.Default()}
	for _, tc := range []struct {
		arg, env, says string
	}{
		{strings.Repeat("x", maxArgStrlen), "", ""},
		{strings.Repeat("x", maxArgStrlen+1), "", "argument 0"},
		{"a\x00b", "", "NUL"},
		{"a", strings.Repeat("x", maxArgStrlen-2), ""},
		{"a", strings.Repeat("x", maxArgStrlen-1), `env "E"`},
		{"\n%i$HOME\"'\\", "", ""},
	} {
		pod := basePod()
		pod.Spec.Containers[0].Command = []string{tc.arg}
		launch, err := Build(pod, Containers(pod)[0], Start{}, in, ContainerInputs{Env: []EnvVar{{"E", tc.env}}})
		var refusal *StartRefusal
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%.20q: %v", tc.arg, err)
		case tc.says == "" && string(launch.Spec.Args[0]) != tc.arg:
			t.Errorf("%.20q became %.20q", tc.arg, launch.Spec.Args[0])
		case tc.says != "" && (!errors.As(err, &refusal) || !strings.Contains(refusal.Message, tc.says) || !strings.Contains(refusal.Message, "app")):
			t.Errorf("%.20q: error %v does not say %q", tc.arg, err, tc.says)
		}
	}
}

func TestEveryRefusedFieldIsNamed(t *testing.T) {
	for field, change := range map[string]func(*corev1.Pod){
		"spec.securityContext.sysctls[0]": func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.panic"}}}
		},
		"spec.os.name": func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
	} {
		pod := basePod()
		change(pod)
		got := Refusals(pod, Policy{})
		if len(got) != 1 || got[0].Field != field || got[0].Reason == "" {
			t.Errorf("%s: refusals %v", field, got)
		}
	}
	if got := Refusals(basePod(), Policy{}); len(got) != 0 {
		t.Errorf("a plain pod is refused: %v", got)
	}
}

// TestNeverTwoAttempts: whatever is observed, no container is started while one of its
// attempts may be alive, and nothing is started once the pod ends.
func TestNeverTwoAttempts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod := basePod()
		always := corev1.ContainerRestartPolicyAlways
		pod.Spec.RestartPolicy = rapid.SampledFrom([]corev1.RestartPolicy{"Always", "OnFailure", "Never"}).Draw(t, "policy")
		pod.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "img"}, {Name: "s", Image: "img", RestartPolicy: &always}}
		if rapid.Bool().Draw(t, "ruled") {
			pod.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{restartAllOn(2)}
		}
		if rapid.Bool().Draw(t, "shared") {
			share := true
			pod.Spec.ShareProcessNamespace = &share
		}
		if rapid.Bool().Draw(t, "deleted") {
			pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(1000, 0)}
		}
		obs := Observed{Now: time.Unix(2000, 0), Attempts: map[string][]Attempt{}, Gone: rapid.Bool().Draw(t, "gone")}
		for _, c := range []string{"i", "s", "app", PauseName} {
			for n := range rapid.IntRange(0, 2).Draw(t, "attempts") {
				phase := Ended
				if n > 0 || rapid.Bool().Draw(t, "alive") {
					phase = rapid.SampledFrom([]Phase{Prepared, Running, Ended}).Draw(t, "phase")
				}
				obs.Attempts[c] = append(obs.Attempts[c], Attempt{
					Number: n, Phase: phase, ExitCode: rapid.IntRange(0, 2).Draw(t, "exit"), Started: rapid.Bool().Draw(t, "started"),
					FinishedAt: time.Unix(rapid.Int64Range(1900, 2000).Draw(t, "finished"), 0), Imported: rapid.Bool().Draw(t, "imported"),
					Sandbox: rapid.IntRange(0, 1).Draw(t, "sandbox"), Round: rapid.IntRange(0, 1).Draw(t, "round"),
					Backoff: time.Duration(rapid.IntRange(0, 300).Draw(t, "backoff")) * time.Second,
				})
			}
		}
		d := Decide(pod, obs)
		if d.Ending && len(d.Start) > 0 {
			t.Fatalf("starts %v although the pod ends", d.Start)
		}
		for _, s := range d.Start {
			last, ok := obs.latest(s.Container)
			if ok && last.Phase == Running || slices.ContainsFunc(d.Kill, func(k Kill) bool { return k.Container == s.Container }) {
				t.Fatalf("starts %v beside a living attempt", s)
			}
		}
		if len(d.Start) > 0 && SharesPID(pod) && d.Start[0].Container != PauseName && !obs.SandboxUp(pod) {
			t.Fatalf("starts %v in a namespace that is not there", d.Start)
		}
		if d.Done && obs.anyRunning() {
			t.Fatal("done although a process lives")
		}
	})
}

// TestPurity keeps what acts out of the decision: a plan must be the same whoever computes it.
func TestPurity(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".", "../podstatus").Output()
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{
		"os": "a plan reads no file and no environment", "os/exec": "a plan runs nothing", "net": "a plan opens no connection",
		"k8s.io/client-go": "a plan asks no API server", "log/slog": "a plan is a value: its caller logs it",
	}
	for _, imported := range strings.Fields(string(out)) {
		for banned, reason := range reasons {
			if imported == banned || strings.HasPrefix(imported, banned+"/") {
				t.Errorf("imports %s: %s", imported, reason)
			}
		}
	}
}

func TestEveryProcessHasTwoSecondsToStop(t *testing.T) {
	begun := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return begun.Add(time.Duration(seconds) * time.Second) }
	for _, tc := range []struct {
		grace     time.Duration
		hookEnded time.Time
		want      time.Time
	}{
		{30 * time.Second, time.Time{}, at(30)},
		{30 * time.Second, at(10), at(30)},
		{30 * time.Second, at(29), at(31)},
		{30 * time.Second, at(30), at(32)},
		{time.Second, time.Time{}, at(2)},
		{time.Second, at(1), at(3)},
		{0, time.Time{}, at(2)},
	} {
		if got := KillTimes(begun, tc.grace, tc.hookEnded); !got.Equal(tc.want) {
			t.Errorf("grace %s, hook until %v: killed at %v, want %v", tc.grace, tc.hookEnded, got, tc.want)
		}
	}
}
