package systemd

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"

	"github.com/godbus/dbus/v5"
)

var busOrder = binary.ByteOrder(binary.LittleEndian)

func TestEventQueueFolds(t *testing.T) {
	for _, test := range []struct {
		name     string
		in, want []Event
	}{
		{"same unit", []Event{{Unit: "a"}, {Unit: "b"}, {Unit: "a"}}, []Event{{Unit: "a"}, {Unit: "b"}}},
		{"UID learnt later", []Event{{Unit: "a"}, {Unit: "a", PodUID: "u"}, {Unit: "a"}}, []Event{{Unit: "a", PodUID: "u"}}},
		{"all swallows the rest", []Event{{Unit: "a"}, {All: true}, {Unit: "b"}}, []Event{{All: true}}},
		{"nothing", nil, nil},
	} {
		q := newEventQueue()
		for _, event := range test.in {
			q.add(event)
		}
		if got := q.take(); len(got)+len(test.want) > 0 && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
		if got := q.take(); len(got) != 0 {
			t.Errorf("%s: %+v left over", test.name, got)
		}
	}
}

// TestEventQueueNeverBlocks adds without a reader, and then reads everything once.
func TestEventQueueNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := newEventQueue()
		go q.pump(ctx)
		for range 1000 {
			q.add(Event{Unit: "a"})
			q.add(Event{Unit: "b"})
		}
		synctest.Wait() // the pump holds the first batch
		seen := map[string]bool{}
		for len(seen) < 2 {
			seen[(<-q.out).Unit] = true
		}
		cancel()
		for range q.out {
		}
	})
}

func TestJobTable(t *testing.T) {
	const job = dbus.ObjectPath("/job/1")
	refused := errors.New("refused")
	for _, test := range []struct {
		name   string
		call   func(*jobTable) (dbus.ObjectPath, error)
		after  func(*jobTable)
		result string
		err    error
	}{
		{"result before the reply", func(j *jobTable) (dbus.ObjectPath, error) { j.finish(job, "done"); return job, nil }, nil, "done", nil},
		{"result after the reply", nil, func(j *jobTable) { j.finish(job, "failed") }, "failed", nil},
		{"another job's result", nil, func(j *jobTable) { j.finish("/job/2", "failed"); j.finish(job, "done") }, "done", nil},
		{"connection lost", nil, func(j *jobTable) { j.lose() }, "", errJobLost},
		{"refused", func(*jobTable) (dbus.ObjectPath, error) { return "", refused }, nil, "", refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newJobTable()
				call := func() (dbus.ObjectPath, error) { return job, nil }
				if test.call != nil {
					call = func() (dbus.ObjectPath, error) { return test.call(table) }
				}
				if test.after != nil {
					go func() { synctest.Wait(); test.after(table) }()
				}
				result, err := table.run(t.Context(), call)
				if result != test.result || !errors.Is(err, test.err) {
					t.Errorf("result %q, error %v", result, err)
				}
				if len(table.waiting)+len(table.early)+table.pending != 0 {
					t.Errorf("left over: %+v", table)
				}
			})
		})
	}
}

func TestJobTableContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	table := newJobTable()
	_, err := table.run(ctx, func() (dbus.ObjectPath, error) { return "/job/1", nil })
	if !errors.Is(err, context.Canceled) || len(table.waiting) != 0 {
		t.Errorf("error %v, %d waiting", err, len(table.waiting))
	}
}
