package volumes

import (
	"errors"

	"golang.org/x/sync/errgroup"
)

// together bounds how many volumes of one pod are worked on at a time. Each may keep a thread
// of the process in the kernel, for as long as a server does not answer.
const together = 64

// sideBySide calls do with each number below count, so that no volume waits for another one of
// the pod, and joins the errors in the order of the numbers.
func sideBySide(count int, do func(i int) error) error {
	errs := make([]error, count)
	var group errgroup.Group
	group.SetLimit(together)
	for i := range count {
		group.Go(func() error {
			errs[i] = do(i)
			return nil
		})
	}
	_ = group.Wait() // they are in errs
	return errors.Join(errs...)
}
