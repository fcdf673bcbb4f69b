package pressure

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

const mi, gi = int64(1) << 20, int64(1) << 30

func TestThresholds(t *testing.T) {
	list := Thresholds(DefaultHard(), map[Signal]Amount{MemoryAvailable: {Number: gi}},
		map[Signal]Amount{MemoryAvailable: {Number: mi}}, map[Signal]time.Duration{MemoryAvailable: time.Minute})
	var got []string
	for _, th := range list {
		got = append(got, fmt.Sprintf("%s<%s %s +%s", th.Signal, th.Value, th.Grace, th.MinReclaim))
	}
	want := []string{
		"memory.available<100Mi 0s +1Mi", "nodefs.available<10% 0s +0%", "nodefs.inodesFree<5% 0s +0%", "imagefs.available<15% 0s +0%",
		"imagefs.inodesFree<5% 0s +0%", "memory.available<1Gi 1m0s +1Mi", "allocatableMemory.available<100Mi 0s +1Mi",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	off := Thresholds(map[Signal]Amount{MemoryAvailable: {}, NodeFSAvailable: {Percent: 100}}, nil, nil, nil)
	if len(off) != 0 {
		t.Errorf("0%% and 100%% turn a threshold off: %v", off)
	}
	kept := Reserve(list, corev1.ResourceList{"memory": resource.MustParse("4Gi"), "ephemeral-storage": resource.MustParse("100Gi")})
	if kept.Memory().Value() != 100*mi || kept.StorageEphemeral().Value() != 10*gi {
		t.Errorf("%v", kept)
	}
}

func TestParseAmount(t *testing.T) {
	for text, want := range map[string]Amount{"100Mi": {Number: 100 * mi}, "12.5%": {Percent: 12.5}, "0%": {}, "5k": {Number: 5000}} {
		if got, err := ParseAmount(text); err != nil || got != want {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "0", "101%", "-1%", "NaN%", "x%", "10 %", "1Zi"} {
		if got, err := ParseAmount(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// TestNext goes through the life of a shortage, second by second.
func TestNext(t *testing.T) {
	hard := Threshold{Signal: NodeFSAvailable, Value: Amount{Percent: 10}, MinReclaim: Amount{Number: 5}}
	soft := Threshold{Signal: MemoryAvailable, Value: Amount{Number: 50}, Grace: 10 * time.Second}
	settings := Settings{Thresholds: []Threshold{hard, soft}, TransitionPeriod: 20 * time.Second}
	begun := time.Unix(1000, 0)
	var state State
	for _, step := range []struct {
		at         int
		disk, mem  int64
		conditions string
		starved    string
	}{
		{0, 100, 100, "[]", "[]"},
		{1, 9, 100, "[DiskPressure]", "[nodefs.available]"},
		{2, 12, 100, "[DiskPressure]", "[nodefs.available]"}, // less than the minimum was reclaimed
		{3, 15, 100, "[DiskPressure]", "[]"},
		{4, 12, 100, "[DiskPressure]", "[]"}, // over: the threshold itself counts again
		{5, 12, 49, "[DiskPressure MemoryPressure]", "[]"},
		{14, 12, 49, "[DiskPressure MemoryPressure]", "[]"},
		{15, 9, 49, "[DiskPressure MemoryPressure]", "[memory.available nodefs.available]"}, // memory first
		{16, 99, 50, "[DiskPressure MemoryPressure]", "[]"},
		{34, 99, 50, "[DiskPressure MemoryPressure]", "[]"},
		{35, 99, 50, "[]", "[]"},
		{36, 99, 49, "[MemoryPressure]", "[]"}, // its grace period begins anew
	} {
		var v Verdict
		state, v = Next(settings, state, Observations{NodeFSAvailable: {step.disk, 100}, MemoryAvailable: {step.mem, 100}},
			begun.Add(time.Duration(step.at)*time.Second))
		starved := []Signal{}
		for _, th := range v.Starved {
			starved = append(starved, th.Signal)
		}
		if got := fmt.Sprint(v.Conditions); got != step.conditions {
			t.Errorf("second %d: conditions %s, want %s", step.at, got, step.conditions)
		}
		if got := fmt.Sprint(starved); got != step.starved {
			t.Errorf("second %d: starved %s, want %s", step.at, got, step.starved)
		}
	}
	if _, v := Next(settings, State{}, Observations{}, begun); len(v.Conditions)+len(v.Starved) > 0 {
		t.Errorf("what is not seen is short: %+v", v)
	}
}

func candidate(name string, priority int32, request string, usage *Usage) Candidate {
	return Candidate{&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
		Spec: corev1.PodSpec{
			Priority: &priority,
			Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceMemory: resource.MustParse(request), corev1.ResourceEphemeralStorage: resource.MustParse(request),
			}}}},
		},
	}, usage}
}

func names(list []Candidate) (all []string) {
	for _, c := range list {
		all = append(all, c.Pod.Name)
	}
	return all
}

func TestRank(t *testing.T) {
	pods := []Candidate{
		candidate("within", 0, "1Gi", &Usage{Memory: 900 * mi, Disk: 10, Inodes: 1, Processes: 9}),
		candidate("above-important", 10, "100Mi", &Usage{Memory: 900 * mi, Disk: gi, Inodes: 2, Processes: 5}),
		candidate("above-little", 0, "100Mi", &Usage{Memory: 200 * mi, Disk: 0, Inodes: 90, Processes: 900}),
		candidate("above-much", 0, "1Gi", &Usage{Memory: 2 * gi, Disk: 2 * gi, Inodes: 50, Processes: 1}),
		candidate("unknown", 1000, "1Gi", nil),
	}
	for signal, want := range map[Signal][]string{
		MemoryAvailable:  {"unknown", "above-much", "above-little", "above-important", "within"},
		NodeFSAvailable:  {"unknown", "above-much", "above-important", "above-little", "within"},
		NodeFSInodesFree: {"unknown", "above-little", "above-much", "within", "above-important"},
		PIDAvailable:     {"unknown", "above-little", "within", "above-much", "above-important"},
	} {
		if got := names(Rank(signal, pods)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", signal, got, want)
		}
	}
}

// TestRankIsAnOrder: whatever the pods, the order does not depend on how they came, and nobody
// goes before one that counts for less.
func TestRankIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pods []Candidate
		for i := range rapid.IntRange(0, 8).Draw(t, "pods") {
			var usage *Usage
			if rapid.IntRange(0, 4).Draw(t, "known") > 0 {
				usage = &Usage{
					Memory: rapid.Int64Range(0, 4).Draw(t, "memory") * gi, Disk: rapid.Int64Range(0, 4).Draw(t, "disk") * gi,
					Inodes: rapid.Int64Range(0, 3).Draw(t, "inodes"), Processes: rapid.Int64Range(0, 3).Draw(t, "processes"),
				}
			}
			request := fmt.Sprintf("%dGi", rapid.IntRange(0, 3).Draw(t, "request"))
			pods = append(pods, candidate(fmt.Sprint("p", i), rapid.Int32Range(-1, 1).Draw(t, "priority"), request, usage))
		}
		signal := rapid.SampledFrom(Signals).Draw(t, "signal")
		ranked := Rank(signal, pods)
		if other := Rank(signal, rapid.Permutation(pods).Draw(t, "other order")); !slices.Equal(names(ranked), names(other)) {
			t.Fatalf("%v and %v", names(ranked), names(other))
		}
		for i := 1; i < len(ranked); i++ {
			a, b := ranked[i-1].standing(signal), ranked[i].standing(signal)
			switch {
			case !a.known:
			case !b.known:
				t.Fatalf("a pod whose usage is not known is spared for %s", ranked[i-1].Pod.Name)
			case a.within && !b.within:
				t.Fatalf("%s is within its request and goes before %s", ranked[i-1].Pod.Name, ranked[i].Pod.Name)
			case a.within == b.within && a.priority > b.priority:
				t.Fatalf("%s matters more and goes before %s", ranked[i-1].Pod.Name, ranked[i].Pod.Name)
			case a.within == b.within && a.priority == b.priority && a.above < b.above:
				t.Fatalf("%s uses less above its request and goes before %s", ranked[i-1].Pod.Name, ranked[i].Pod.Name)
			}
		}
	})
}

// TestNextProperties: a shortage shows at once, stays for the transition period and not
// longer, and nothing is starved that is not short.
func TestNextProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		settings := Settings{
			Thresholds:       Thresholds(DefaultHard(), map[Signal]Amount{MemoryAvailable: {Number: 40}}, nil, map[Signal]time.Duration{MemoryAvailable: 3 * time.Second}),
			TransitionPeriod: 5 * time.Second,
		}
		var state State
		now, low := time.Unix(1000, 0), map[corev1.NodeConditionType]time.Time{}
		for range 30 {
			now = now.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "seconds")) * time.Second)
			seen := Observations{}
			for _, s := range Signals {
				if rapid.Bool().Draw(t, "seen") {
					seen[s] = Observation{rapid.Int64Range(0, 100).Draw(t, "available"), 100}
				}
			}
			var v Verdict
			state, v = Next(settings, state, seen, now)
			met := Met(settings.Thresholds, seen, false)
			for _, th := range met {
				low[th.Signal.Condition()] = now
			}
			for _, c := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
				at, was := low[c]
				if want := was && now.Sub(at) < settings.TransitionPeriod; v.Has(c) != want {
					t.Fatalf("%s holds: %v, last brought about at %v, now %v", c, v.Has(c), at, now)
				}
			}
			for _, th := range v.Starved {
				if !slices.Contains(met, th) {
					t.Fatalf("%v is starved and not met (nothing has a minimum to reclaim)", th)
				}
			}
			for _, th := range met {
				if th.Hard() && !slices.Contains(v.Starved, th) {
					t.Fatalf("%v is met and not starved", th)
				}
			}
		}
	})
}

func TestMessage(t *testing.T) {
	c := candidate("web", 0, "100Mi", &Usage{Memory: 300 * mi, Containers: map[string]int64{"c": 300 * mi}})
	memory := Threshold{Signal: MemoryAvailable, Value: Amount{Number: 100 * mi}}
	got := Message(memory, c, Observations{MemoryAvailable: {90 * mi, gi}})
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. " +
		"Container c was using 300Mi, request is 100Mi, has larger consumption of memory. "
	if got != want {
		t.Errorf("%q", got)
	}
	c.Pod.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("200Mi")}}
	c.Usage.Containers = nil
	if got, want := Message(memory, c, nil), "The node was low on resource: memory. "+
		"Pod web was using 300Mi, request is 200Mi, has larger consumption of memory. "; got != want {
		t.Errorf("%q", got)
	}
	inodes := Threshold{Signal: NodeFSInodesFree, Value: Amount{Percent: 5}}
	if got, want := Message(inodes, c, Observations{NodeFSInodesFree: {900, 100_000}}),
		"The node was low on resource: inodes. Threshold quantity: 5k, available: 900. "; got != want {
		t.Errorf("%q", got)
	}
}

func TestPodGrace(t *testing.T) {
	s := Settings{MaxPodGrace: 20 * time.Second}
	soft, hard := Threshold{Grace: time.Second}, Threshold{}
	pod := func(grace *int64) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: grace}}
	}
	for want, got := range map[time.Duration]time.Duration{
		time.Second:      s.PodGrace(hard, pod(ptr.To[int64](60))),
		20 * time.Second: s.PodGrace(soft, pod(ptr.To[int64](60))),
		5 * time.Second:  s.PodGrace(soft, pod(ptr.To[int64](5))),
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := s.PodGrace(soft, pod(nil)); got != 20*time.Second {
		t.Errorf("without a period of its own: %s", got)
	}
}
