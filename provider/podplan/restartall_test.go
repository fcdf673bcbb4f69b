package podplan

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

var restartNow = time.Unix(1_700_000_000, 0)

// restarting is a pod that never restarts but for a rule of its container "source", and what
// is seen after that has exited with 42: an init container is done, a sidecar and another
// container run, a debugger too.
func restarting() (*corev1.Pod, *Observed) {
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever
	pod := basePod()
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}}
	pod.Spec.Containers = []corev1.Container{
		{Name: "source", Image: "img", RestartPolicy: &never, RestartPolicyRules: []corev1.ContainerRestartRule{restartAllOn(42)}},
		{Name: "other", Image: "img"},
	}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "img"}}}
	runs := []Attempt{{Phase: Running, Started: true, Ready: true}}
	return pod, &Observed{Now: restartNow, Attempts: map[string][]Attempt{
		"init": {over(0, 0)}, "side": runs, "source": {over(0, 42)}, "other": slices.Clone(runs), "debug": slices.Clone(runs),
	}}
}

func restartAllOn(code int32) corev1.ContainerRestartRule {
	return corev1.ContainerRestartRule{
		Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{code}},
	}
}

func over(number, code int) Attempt {
	return Attempt{
		Number: number, Phase: Ended, ExitCode: code, CreatedAt: restartNow.Add(-20 * time.Second),
		StartedAt: restartNow.Add(-20 * time.Second), FinishedAt: restartNow.Add(-time.Second),
	}
}

// allOver is the moment when nothing of the old round is left.
func allOver(o *Observed) {
	o.Attempts["side"] = []Attempt{over(0, 137)}
	o.Attempts["other"] = []Attempt{over(0, 137)}
}

func TestRestartAllContainers(t *testing.T) {
	type wanted struct {
		kill, start string // names
		waiting     string // names with reasons
		trigger     bool
		ending      bool
		wake        time.Duration
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod, *Observed)
		want   wanted
	}{
		"all that run are stopped": {
			func(*corev1.Pod, *Observed) {},
			wanted{kill: "side other", waiting: "init RestartingAllContainers, source RestartingAllContainers", trigger: true},
		},
		"another exit code": {
			func(_ *corev1.Pod, o *Observed) { o.Attempts["source"][0].ExitCode = 41 }, wanted{},
		},
		"a rule before says otherwise": {
			func(p *corev1.Pod, _ *Observed) {
				rule := restartAllOn(42)
				rule.Action = corev1.ContainerRestartRuleActionRestart
				p.Spec.Containers[0].RestartPolicyRules = append([]corev1.ContainerRestartRule{rule}, p.Spec.Containers[0].RestartPolicyRules...)
			}, wanted{start: "source"},
		},
		"then the first init container starts": {
			func(_ *corev1.Pod, o *Observed) { allOver(o) },
			wanted{start: "init", waiting: "init RestartingAllContainers, side RestartingAllContainers, source RestartingAllContainers, other RestartingAllContainers"},
		},
		"one that has begun does not begin again": {
			func(_ *corev1.Pod, o *Observed) {
				allOver(o)
				o.Attempts["init"] = append(o.Attempts["init"], Attempt{Number: 1, Phase: Running, Round: 1})
			},
			wanted{waiting: "side RestartingAllContainers, source RestartingAllContainers, other RestartingAllContainers"},
		},
		"in their order": {
			func(_ *corev1.Pod, o *Observed) {
				allOver(o)
				again := over(1, 0)
				again.Round = 1
				o.Attempts["init"] = append(o.Attempts["init"], again)
			},
			wanted{start: "side", waiting: "side RestartingAllContainers, source RestartingAllContainers, other RestartingAllContainers"},
		},
		"an init container that fails then fails the pod": {
			func(_ *corev1.Pod, o *Observed) {
				allOver(o)
				again := over(1, 1)
				again.Round = 1
				o.Attempts["init"] = append(o.Attempts["init"], again)
			}, wanted{ending: true, kill: "debug", waiting: "side RestartingAllContainers, source RestartingAllContainers, other RestartingAllContainers"},
		},
		"an init container asks for it": {
			func(p *corev1.Pod, o *Observed) {
				never := corev1.ContainerRestartPolicyNever
				p.Spec.InitContainers[0].RestartPolicy, p.Spec.InitContainers[0].RestartPolicyRules = &never, []corev1.ContainerRestartRule{restartAllOn(3)}
				clear(o.Attempts)
				o.Attempts["init"] = []Attempt{over(0, 3)}
			}, wanted{start: "debug init", waiting: "init RestartingAllContainers, side PodInitializing, source PodInitializing, other PodInitializing"},
		},
		"a sidecar asks for it": {
			func(p *corev1.Pod, o *Observed) {
				p.Spec.InitContainers[1].RestartPolicyRules = []corev1.ContainerRestartRule{restartAllOn(3)}
				o.Attempts["side"], o.Attempts["source"] = []Attempt{over(0, 3)}, []Attempt{{Phase: Running}}
			}, wanted{kill: "source other", trigger: true, waiting: "init RestartingAllContainers, side RestartingAllContainers"},
		},
		"a second time in a row waits": {
			func(_ *corev1.Pod, o *Observed) {
				allOver(o)
				for c, list := range o.Attempts {
					if c != "debug" {
						list[0].Round, list[0].Number = 1, 1
					}
				}
				o.Attempts["source"][0].Backoff = BackoffInitial
			},
			wanted{
				wake:    9 * time.Second,
				waiting: "init RestartingAllContainers, side RestartingAllContainers, source CrashLoopBackOff, other RestartingAllContainers",
			},
		},
		"after a reboot": {
			func(_ *corev1.Pod, o *Observed) {
				allOver(o)
				for _, list := range o.Attempts {
					list[0].Imported, list[0].Phase = true, Ended
				}
			},
			wanted{start: "init", waiting: "init RestartingAllContainers, side RestartingAllContainers, source RestartingAllContainers, other RestartingAllContainers"},
		},
		"not while the pod ends": {
			func(p *corev1.Pod, o *Observed) { o.Gone = true }, wanted{ending: true, kill: "debug other side", waiting: ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod, obs := restarting()
			tc.change(pod, obs)
			d := Decide(pod, *obs)
			got := wanted{trigger: d.Trigger != nil, ending: d.Ending}
			var kill, start, waiting []string
			for _, k := range d.Kill {
				kill = append(kill, k.Container)
				if d.Trigger != nil && (!k.Abrupt || k.Grace != 0) {
					t.Errorf("kill %+v is not at once", k)
				}
			}
			for _, s := range d.Start {
				start = append(start, s.Container)
			}
			for _, c := range Containers(pod) {
				if w, ok := d.Waiting[c.Name]; ok {
					waiting = append(waiting, c.Name+" "+w.Reason)
				}
			}
			if !d.Wake.IsZero() {
				got.wake = d.Wake.Sub(obs.Now)
			}
			if got.ending {
				slices.Sort(kill)
			}
			got.kill, got.start, got.waiting = strings.Join(kill, " "), strings.Join(start, " "), strings.Join(waiting, ", ")
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestRestartAllKeepsTheBackOffOfOthers(t *testing.T) {
	pod, obs := restarting()
	pod.Spec.InitContainers, pod.Spec.EphemeralContainers = nil, nil
	source, other := over(2, 42), over(1, 137)
	source.Backoff, source.FinishedAt, other.Backoff = 20*time.Second, restartNow.Add(-time.Minute), 40*time.Second
	obs.Attempts = map[string][]Attempt{"source": {source}, "other": {other}}
	want := []Start{
		{Container: "source", Attempt: 3, Backoff: 40 * time.Second, Round: 1},
		{Container: "other", Attempt: 2, Backoff: 40 * time.Second, Round: 1},
	}
	if d := Decide(pod, *obs); !slices.Equal(d.Start, want) {
		t.Errorf("starts %+v, want %+v", d.Start, want)
	}
}

// TestRestartAllComesToItsEnd: however processes behave, one exit is one restart of each
// container, no init container is passed over, and no two rounds run side by side.
func TestRestartAllComesToItsEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pod, obs := restarting()
		pod.Spec.EphemeralContainers = nil
		obs.Attempts = map[string][]Attempt{}
		exits := rapid.IntRange(1, 3).Draw(t, "exits")
		for step := 0; ; step++ {
			if step > 500 {
				t.Fatalf("no end: %+v", Decide(pod, *obs))
			}
			obs.Now = obs.Now.Add(time.Second)
			d := Decide(pod, *obs)
			if d.Ending {
				t.Fatalf("the pod ends: %+v", d)
			}
			acted := carryOut(t, obs, d)
			acted = progress(t, obs, &exits) || acted
			if !acted && d.Wake.IsZero() {
				break
			}
		}
		for c, list := range obs.Attempts {
			last := list[len(list)-1]
			if c == "init" && last.ExitCode != 0 || c != "init" && last.Phase != Running {
				t.Errorf("%s ends as %+v", c, last)
			}
		}
	})
}

// carryOut does a part of what was decided, as an agent that may die at any moment.
func carryOut(t *rapid.T, obs *Observed, d Decision) (acted bool) {
	for _, k := range d.Kill {
		if rapid.Bool().Draw(t, "dies") {
			list := obs.Attempts[k.Container]
			last := &list[len(list)-1]
			last.Phase, last.ExitCode, last.FinishedAt = Ended, 137, obs.Now
		}
		acted = true
	}
	for _, s := range d.Start {
		list := obs.Attempts[s.Container]
		if n := len(list); n > 0 && list[n-1].Number == s.Attempt {
			list = list[:n-1]
		}
		phase := rapid.SampledFrom([]Phase{Prepared, Running}).Draw(t, "phase")
		obs.Attempts[s.Container] = append(list, Attempt{
			Number: s.Attempt, Phase: phase, Backoff: s.Backoff, Round: s.Round, Started: true, CreatedAt: obs.Now, StartedAt: obs.Now,
		})
		for c, others := range obs.Attempts {
			last := others[len(others)-1]
			if last.Phase == Running && last.Round != s.Round {
				t.Fatalf("%s of round %d is started beside %s of round %d", s.Container, s.Round, c, last.Round)
			}
		}
		acted = true
		if rapid.Bool().Draw(t, "crash") {
			break
		}
	}
	return acted
}

// progress lets init containers end, and now and then the container that has the rule.
func progress(t *rapid.T, obs *Observed, exits *int) (acted bool) {
	for _, c := range []string{"init", "source"} {
		list := obs.Attempts[c]
		if len(list) == 0 || list[len(list)-1].Phase != Running {
			continue
		}
		last := &list[len(list)-1]
		switch {
		case c == "init":
			last.Phase, last.FinishedAt = Ended, obs.Now
		case *exits > 0:
			if rapid.Bool().Draw(t, "exits") {
				*exits--
				last.Phase, last.ExitCode, last.FinishedAt = Ended, 42, obs.Now
			}
		default:
			continue
		}
		acted = true
	}
	return acted
}
