package podstatus

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

var now = time.Unix(1_700_000_000, 0)

// base is a pod of an init container, a sidecar and two main containers, all of which do
// what they should: the cases change one thing each.
func base() (*corev1.Pod, *Input) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u-1", Generation: 3},
		Spec: corev1.PodSpec{
			RestartPolicy:  corev1.RestartPolicyAlways,
			InitContainers: []corev1.Container{{Name: "init", Image: "i"}, {Name: "side", Image: "i", RestartPolicy: &always}},
			Containers:     []corev1.Container{{Name: "a", Image: "i"}, {Name: "b", Image: "i"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	runs := func() []podplan.Attempt {
		return []podplan.Attempt{{Phase: podplan.Running, StartedAt: now.Add(-time.Minute), Started: true, Ready: true, Image: "i", ImageID: "i@1"}}
	}
	in := &Input{
		SandboxReady: true, PodIPs: []string{"10.0.0.1", "fd00::1"}, HostIPs: []string{"192.0.2.1"}, StartTime: now.Add(-2 * time.Minute),
		Observed: podplan.Observed{Now: now, Attempts: map[string][]podplan.Attempt{
			"init": {ended(0, 0)}, "side": runs(), "a": runs(), "b": runs(),
		}},
	}
	return pod, in
}

func ended(number, code int) podplan.Attempt {
	return podplan.Attempt{
		Number: number, Phase: podplan.Ended, ExitCode: code, Started: true, CreatedAt: now.Add(-90 * time.Second), StartedAt: now.Add(-90 * time.Second),
		FinishedAt: now.Add(-80 * time.Second),
	}
}

func set(in *Input, container string, attempts ...podplan.Attempt) {
	in.Observed.Attempts[container] = attempts
}

// decide is what the plan says of it, as in the provider.
func decide(pod *corev1.Pod, in *Input) { in.Decision = podplan.Decide(pod, in.Observed) }

type wanted struct {
	phase                            corev1.PodPhase
	initialized, ready, containersOK string
	reason                           string
}

func TestPhaseAndConditions(t *testing.T) {
	good := wanted{corev1.PodRunning, "True", "True", "True", ""}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod, *Input)
		want   wanted
	}{
		"all is well":        {func(*corev1.Pod, *Input) {}, good},
		"nothing seen yet":   {func(_ *corev1.Pod, in *Input) { clear(in.Observed.Attempts) }, wanted{corev1.PodPending, "False", "False", "False", ""}},
		"init runs":          {func(_ *corev1.Pod, in *Input) { initRuns(in) }, wanted{corev1.PodPending, "False", "False", "False", ""}},
		"init failed, Never": {func(p *corev1.Pod, in *Input) { initFails(p, in) }, wanted{corev1.PodFailed, "False", "False", "False", ""}},
		"one main not ready": {func(_ *corev1.Pod, in *Input) { in.Observed.Attempts["b"][0].Ready = false }, wanted{corev1.PodRunning, "True", "False", "False", ""}},
		"sidecar not ready":  {func(_ *corev1.Pod, in *Input) { in.Observed.Attempts["side"][0].Ready = false }, wanted{corev1.PodRunning, "True", "False", "False", ""}},
		"one main crashed":   {func(_ *corev1.Pod, in *Input) { set(in, "b", ended(0, 1)) }, wanted{corev1.PodRunning, "True", "False", "False", ""}},
		"gate missing": {func(p *corev1.Pod, _ *Input) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "lb"}}
		}, wanted{corev1.PodRunning, "True", "False", "True", ""}},
		"gate open": {func(p *corev1.Pod, _ *Input) {
			p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "lb"}}
			p.Status.Conditions = []corev1.PodCondition{{Type: "lb", Status: corev1.ConditionTrue}}
		}, good},
		"done, Never":   {func(p *corev1.Pod, in *Input) { allEnd(p, in, 0) }, wanted{corev1.PodSucceeded, "True", "False", "False", ""}},
		"failed, Never": {func(p *corev1.Pod, in *Input) { allEnd(p, in, 3) }, wanted{corev1.PodFailed, "True", "False", "False", ""}},
		"done but for the sidecar": {func(p *corev1.Pod, in *Input) {
			allEnd(p, in, 0)
			in.Observed.Attempts["side"][0].Phase = podplan.Running
		}, wanted{corev1.PodRunning, "True", "False", "False", ""}},
		"evicted, still running": {func(_ *corev1.Pod, in *Input) {
			in.Observed.Evict = &podplan.Ending{Reason: "Evicted", Message: "m"}
		}, wanted{corev1.PodRunning, "True", "True", "True", "Evicted"}},
		"past its deadline, dead": {func(p *corev1.Pod, in *Input) {
			allEnd(p, in, 143)
			p.Spec.RestartPolicy = corev1.RestartPolicyAlways
			seconds, start := int64(5), metav1.NewTime(now.Add(-time.Hour))
			p.Spec.ActiveDeadlineSeconds, p.Status.StartTime = &seconds, &start
		}, wanted{corev1.PodFailed, "True", "False", "False", "DeadlineExceeded"}},
		"a final phase stays": {func(p *corev1.Pod, _ *Input) { p.Status.Phase = corev1.PodFailed }, wanted{corev1.PodFailed, "True", "False", "False", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, in := base()
			tc.change(pod, in)
			decide(pod, in)
			s := Compute(pod, *in)
			got := wanted{s.Phase, status(s, corev1.PodInitialized), status(s, corev1.PodReady), status(s, corev1.ContainersReady), s.Reason}
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v\ndecision %+v", got, tc.want, in.Decision)
			}
			for _, c := range s.Conditions {
				if Owned(c.Type) && c.ObservedGeneration != 3 {
					t.Errorf("condition %s is of generation %d", c.Type, c.ObservedGeneration)
				}
			}
		})
	}
}

func initRuns(in *Input) {
	side := in.Observed.Attempts["side"]
	clear(in.Observed.Attempts)
	set(in, "init", side...)
}

func initFails(pod *corev1.Pod, in *Input) {
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	clear(in.Observed.Attempts)
	set(in, "init", ended(0, 1))
}

func allEnd(pod *corev1.Pod, in *Input, code int) {
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	for _, c := range []string{"side", "a", "b"} {
		set(in, c, ended(0, code))
	}
}

func status(s corev1.PodStatus, kind corev1.PodConditionType) string {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return string(c.Status)
		}
	}
	return "none"
}

func TestContainerStates(t *testing.T) {
	type state struct {
		waiting, terminated, last string // reasons
		running, started, ready   bool
		restarts                  int32
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod, *Input)
		want   state
	}{
		"runs":         {func(*corev1.Pod, *Input) {}, state{running: true, started: true, ready: true}},
		"not made yet": {func(_ *corev1.Pod, in *Input) { delete(in.Observed.Attempts, "b") }, state{waiting: "PodInitializing"}},
		"image is missing": {func(_ *corev1.Pod, in *Input) {
			delete(in.Observed.Attempts, "b")
			in.Waiting = map[string]podplan.Waiting{"b": {Reason: "ImagePullBackOff"}}
		}, state{waiting: "ImagePullBackOff"}},
		"only prepared": {func(_ *corev1.Pod, in *Input) { set(in, "b", podplan.Attempt{Phase: podplan.Prepared}) }, state{waiting: "PodInitializing"}},
		"not started by its probe": {func(_ *corev1.Pod, in *Input) {
			in.Observed.Attempts["b"][0].Started, in.Observed.Attempts["b"][0].Ready = false, false
		}, state{running: true}},
		"first crash, restarted at once": {func(_ *corev1.Pod, in *Input) {
			set(in, "b", ended(0, 1), podplan.Attempt{Number: 1, Phase: podplan.Running, Started: true, Ready: true})
		}, state{running: true, started: true, ready: true, restarts: 1, last: "Error"}},
		"held back": {func(_ *corev1.Pod, in *Input) {
			a := ended(1, 1)
			a.Backoff, a.FinishedAt = time.Minute, now
			set(in, "b", ended(0, 1), a)
		}, state{waiting: "CrashLoopBackOff", last: "Error", restarts: 1}},
		"out of memory, Never": {func(p *corev1.Pod, in *Input) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			a := ended(0, 137)
			a.OOMKilled = true
			set(in, "b", a)
		}, state{terminated: "OOMKilled"}},
		"done, Never": {func(p *corev1.Pod, in *Input) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			set(in, "b", ended(0, 0))
		}, state{terminated: "Completed"}},
		"could not be executed": {func(_ *corev1.Pod, in *Input) {
			a := ended(0, 127)
			a.Reason, a.FinishedAt, a.Backoff = "StartError", now, time.Minute
			set(in, "b", a)
		}, state{waiting: "RunContainerError", last: "StartError"}},
		"postStart runs": {func(_ *corev1.Pod, in *Input) {
			in.Observed.Attempts["b"][0].PostStart = podplan.HookRunning
		}, state{waiting: "PodInitializing"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, in := base()
			tc.change(pod, in)
			decide(pod, in)
			s := find(Compute(pod, *in).ContainerStatuses, "b")
			got := state{running: s.State.Running != nil, started: s.Started != nil && *s.Started, ready: s.Ready, restarts: s.RestartCount}
			if s.State.Waiting != nil {
				got.waiting = s.State.Waiting.Reason
			}
			if s.State.Terminated != nil {
				got.terminated = s.State.Terminated.Reason
			}
			if s.LastTerminationState.Terminated != nil {
				got.last = s.LastTerminationState.Terminated.Reason
			}
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestWhatOthersWroteStays(t *testing.T) {
	pod, in := base()
	before := metav1.NewTime(now.Add(-time.Hour))
	pod.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "x"},
		{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: before},
		{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonDeferred},
	}
	pod.Status.NominatedNodeName = "n2"
	decide(pod, in)
	s := Compute(pod, *in)
	if status(s, corev1.DisruptionTarget) != "True" || s.NominatedNodeName != "n2" {
		t.Errorf("status %+v", s)
	}
	if status(s, corev1.PodResizePending) != "none" {
		t.Error("the condition of a resize that is over stays")
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady && !c.LastTransitionTime.Equal(&before) {
			t.Errorf("the transition of %s moved to %v", c.Type, c.LastTransitionTime)
		}
	}
	if s.PodIP != "10.0.0.1" || len(s.PodIPs) != 2 || s.HostIP != "192.0.2.1" || s.ObservedGeneration != 3 {
		t.Errorf("addresses and generation: %+v", s)
	}
}

// TestComputeSettles: the status of the status is the same, or agents would patch for ever.
func TestComputeSettles(t *testing.T) {
	pod, in := base()
	decide(pod, in)
	pod.Status = Compute(pod, *in)
	in.Observed.Now = now.Add(time.Minute)
	again := Compute(pod, *in)
	for i, c := range again.Conditions {
		if c != pod.Status.Conditions[i] {
			t.Errorf("condition %+v became %+v", pod.Status.Conditions[i], c)
		}
	}
}

func TestMessagesOfAPodHaveABoundTogether(t *testing.T) {
	pod, in := base()
	long := ended(0, 1)
	long.Message = strings.Repeat("é", 4096/2)
	set(in, "a", long)
	decide(pod, in)
	cs := Compute(pod, *in).ContainerStatuses[0]
	got := cs.State.Terminated
	if got == nil {
		got = cs.LastTerminationState.Terminated
	}
	if want := 12 << 10 / 4; len(got.Message) != want || !utf8.ValidString(got.Message) {
		t.Errorf("%d bytes of the message are kept, want %d", len(got.Message), want)
	}
	if got := cut("aé", 2); got != "a" {
		t.Errorf("half a character is kept: %q", got)
	}
}

func TestStopSignalIsShownWhereItIsSet(t *testing.T) {
	pod, in := base()
	signal := corev1.SIGUSR1
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{StopSignal: &signal}
	decide(pod, in)
	s := Compute(pod, *in)
	if got := s.ContainerStatuses[0].StopSignal; got == nil || *got != signal {
		t.Errorf("stop signal %v", got)
	}
	if got := s.ContainerStatuses[1].StopSignal; got != nil {
		t.Errorf("stop signal %v of a container that sets none", *got)
	}
}

// TestRestartOfAllContainersIsShown: the condition holds while the old processes end, a pod
// that is initialized stays so, and none fails meanwhile.
func TestRestartOfAllContainersIsShown(t *testing.T) {
	type wanted struct {
		phase                   corev1.PodPhase
		restarting, initialized string
	}
	for name, tc := range map[string]struct {
		change func(*Input)
		want   wanted
	}{
		"nothing has happened": {func(*Input) {}, wanted{corev1.PodRunning, "False", "True"}},
		"the others end":       {func(in *Input) { set(in, "a", ended(0, 42)) }, wanted{corev1.PodPending, "True", "True"}},
		"the others have ended": {func(in *Input) {
			set(in, "a", ended(0, 42))
			set(in, "b", ended(0, 137))
			set(in, "side", ended(0, 137))
		}, wanted{corev1.PodPending, "False", "True"}},
		"it is held back": {func(in *Input) {
			source := ended(1, 42)
			source.Backoff, source.FinishedAt = time.Minute, now
			set(in, "a", ended(0, 42), source)
			set(in, "b", ended(0, 137))
			set(in, "side", ended(0, 137))
		}, wanted{corev1.PodPending, "False", "True"}},
		"the init container failed in the end": {func(in *Input) {
			again := ended(1, 1)
			again.Round = 1
			set(in, "init", ended(0, 0), again)
			set(in, "a", ended(0, 42))
			set(in, "b", ended(0, 137))
			set(in, "side", ended(0, 137))
		}, wanted{corev1.PodFailed, "False", "True"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, in := base()
			never := corev1.ContainerRestartPolicyNever
			pod.Spec.RestartPolicy, pod.Spec.Containers[0].RestartPolicy = corev1.RestartPolicyNever, &never
			pod.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
				Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
				ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
			}}
			tc.change(in)
			decide(pod, in)
			s := Compute(pod, *in)
			got := wanted{s.Phase, status(s, corev1.AllContainersRestarting), status(s, corev1.PodInitialized)}
			if got != tc.want {
				t.Errorf("got %+v, want %+v\ndecision %+v", got, tc.want, in.Decision)
			}
		})
	}
}

// TestWhoseTurnItWasAtTheEnd: a deleted pod's containers that were never started are lost only
// if it was their turn; main containers behind an init container that failed never ran.
func TestWhoseTurnItWasAtTheEnd(t *testing.T) {
	const waits, lost, ran = "waits", "ContainerStatusUnknown", "Error"
	for name, tc := range map[string]struct {
		attempts map[string][]podplan.Attempt
		want     map[string]string
	}{
		"nothing was started":       {nil, map[string]string{"init": lost, "side": waits, "a": waits, "b": waits}},
		"the init container failed": {map[string][]podplan.Attempt{"init": {ended(0, 1)}}, map[string]string{"init": ran, "side": waits, "a": waits, "b": waits}},
		"the sidecar had started": {
			map[string][]podplan.Attempt{"init": {ended(0, 0)}, "side": {ended(0, 1)}}, map[string]string{"init": "Completed", "side": ran, "a": lost, "b": lost},
		},
		"one main container ran": {
			map[string][]podplan.Attempt{"init": {ended(0, 0)}, "side": {ended(0, 1)}, "a": {ended(0, 1)}},
			map[string]string{"init": "Completed", "side": ran, "a": ran, "b": lost},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod, in := base()
			now := metav1.Now()
			pod.Spec.RestartPolicy, pod.DeletionTimestamp = corev1.RestartPolicyNever, &now
			in.Observed.Attempts = tc.attempts
			decide(pod, in)
			s := Compute(pod, *in)
			for _, cs := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
				got := waits
				if end := cs.State.Terminated; end != nil {
					got = end.Reason
				}
				if got != tc.want[cs.Name] {
					t.Errorf("%s is %s, want %s", cs.Name, got, tc.want[cs.Name])
				}
			}
			if s.Phase != corev1.PodFailed {
				t.Errorf("phase %s", s.Phase)
			}
		})
	}
}
