package objects

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func TestTheAuthorizerIsGivenTime(t *testing.T) {
	refused := apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("no relationship found"))
	for name, tc := range map[string]struct {
		answers []error // the last one stays
		limit   time.Duration
		asked   int
		took    time.Duration
		want    error
	}{
		"at once":       {[]error{nil}, time.Hour, 1, 0, nil},
		"a moment late": {[]error{refused, refused, nil}, time.Hour, 3, 6 * time.Millisecond, nil},
		"never":         {[]error{refused}, time.Hour, 9, 510 * time.Millisecond, refused},
		"other error":   {[]error{context.DeadlineExceeded}, time.Hour, 1, 0, context.DeadlineExceeded},
		"no time left":  {[]error{refused}, 20 * time.Millisecond, 4, 20 * time.Millisecond, refused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
				defer cancel()
				begun, asked := time.Now(), 0
				err := authorized(ctx, func() error {
					asked++
					return tc.answers[min(asked, len(tc.answers))-1]
				})
				if took := time.Since(begun); !errors.Is(err, tc.want) || asked != tc.asked || took != tc.took {
					t.Errorf("%v after %d questions and %s", err, asked, took)
				}
			})
		})
	}
}
