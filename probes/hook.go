package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
)

// hookAgent names the version whose behaviour we follow.
const hookAgent = "kube-lifecycle/1.35"

// maxHookBody is what is read of an answer that nobody looks at.
const maxHookBody = 10 << 10

// Hook sends the request of a lifecycle hook, as a kubelet does (pkg/kubelet/lifecycle): it
// has failed if nobody answers; any status will do. plain says that a server that was to be
// asked by HTTPS speaks HTTP, and has answered that.
func Hook(ctx context.Context, get *corev1.HTTPGetAction, target Target) (plain bool, err error) {
	req, err := newRequest(ctx, get, target, hookAgent)
	if err != nil {
		return false, err
	}
	client := &http.Client{Transport: httpTransport, CheckRedirect: checkRedirect}
	err = ask(client, req)
	if !errors.Is(err, http.ErrSchemeMismatch) {
		return false, err
	}
	again := req.Clone(ctx)
	again.URL.Scheme = "http"
	again.Header.Del("Authorization")
	if ask(client, again) != nil {
		return false, err
	}
	return true, nil
}

func ask(client *http.Client, req *http.Request) error {
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", req.URL.Host, err)
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxHookBody)
	return res.Body.Close()
}
