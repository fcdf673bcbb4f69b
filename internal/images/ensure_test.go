package images

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
)

func busybox(t *testing.T) testImage {
	base := tarOf(t, dir("bin/", 0o755), entry{Header: file("bin/busybox", "ELF").Header, body: "ELF"}, symlink("bin/sh", "busybox"), dir("tmp/", 0o1777))
	top := tarOf(t, file("etc/motd", "hello"))
	return buildImage(t, ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, User: "nobody", StopSignal: "SIGINT"}, gz, base, top)
}

func wantEvents(t *testing.T, rec *recorder, patterns ...string) {
	t.Helper()
	got := rec.take()
	if len(got) != len(patterns) {
		t.Fatalf("events %q, want %d like %q", got, len(patterns), patterns)
	}
	for i, p := range patterns {
		if !regexp.MustCompile("^" + p).MatchString(got[i]) {
			t.Errorf("event %q, want like %q", got[i], p)
		}
	}
}

func wantReason(t *testing.T, err error, reason string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason {
		t.Fatalf("error %v (%T), want reason %s", err, err, reason)
	}
	return e
}

func TestPullAndRestart(t *testing.T) {
	m := testManager(t, nil)
	reg := newRegistry(t, nil)
	d := reg.push(t, "team/busybox", "1.0", busybox(t))
	ref := reg.host + "/team/busybox:1.0"
	rec := &recorder{}
	req := PullRequest{Ref: ref, Policy: corev1.PullIfNotPresent, Event: rec.add}

	img, err := m.Ensure(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, rec, `Normal Pulling Pulling image "`, `Normal Pulled Successfully pulled image ".*" in .* including waiting\). Image size: \d+ bytes\.`)
	if want := reg.host + "/team/busybox@" + d.String(); img.Digest != want || img.Ref != ref {
		t.Errorf("digest %s ref %s, want %s %s", img.Digest, img.Ref, want, ref)
	}
	if len(img.Layers) != 2 || img.Config.User != "nobody" || img.Config.StopSignal != "SIGINT" {
		t.Errorf("image %+v", img)
	}
	if body, err := os.ReadFile(filepath.Join(img.Layers[0], "etc/motd")); err != nil || string(body) != "hello" {
		t.Errorf("topmost layer: %q %v", body, err)
	}
	for _, left := range []string{"tmp", "ingest"} {
		if entries, _ := os.ReadDir(m.path(left)); len(entries) > 0 {
			t.Errorf("%s has %v left", left, entries)
		}
	}

	// A new process finds the image and asks nobody.
	before := reg.requests("")
	again, err := NewManager(m.opts)
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Ensure(t.Context(), req)
	if err != nil || got.Digest != img.Digest || reg.requests("") != before {
		t.Errorf("after restart: %+v %v, %d requests", got, err, reg.requests("")-before)
	}
	wantEvents(t, rec, `Normal Pulled Container image ".*" already present on machine and can be accessed by the pod`)
	got, ok, err := again.Get(t.Context(), img.Digest)
	if err != nil || !ok || len(got.Layers) != 2 {
		t.Errorf("Get: %+v %v %v", got, ok, err)
	}
	list, err := again.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Names[0] != img.Digest || list[0].Names[1] != ref || list[0].SizeBytes != img.Size {
		t.Errorf("List: %+v %v", list, err)
	}
}

func TestPolicies(t *testing.T) {
	m := testManager(t, nil)
	reg := newRegistry(t, nil)
	ref := reg.host + "/app:v1"
	rec := &recorder{}
	_, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullNever, Event: rec.add})
	wantReason(t, err, "ErrImageNeverPull")
	wantEvents(t, rec, `Warning ErrImageNeverPull Container image ".*" is not present with pull policy of Never`, `Warning Failed Error: ErrImageNeverPull`)

	reg.push(t, "app", "v1", busybox(t))
	if _, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullAlways}); err != nil {
		t.Fatal(err)
	}
	blobs := reg.requests("GET /v2/app/blobs/")
	if _, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullAlways, Event: rec.add}); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, rec, `Normal Pulling`, `Normal Pulled Successfully pulled`)
	if n := reg.requests("GET /v2/app/blobs/"); n != blobs {
		t.Errorf("Always fetched %d blobs of an unchanged image", n-blobs)
	}
	// The tag moves: Always follows, IfNotPresent stays.
	moved := reg.push(t, "app", "v1", buildImage(t, ocispec.ImageConfig{}, gz, tarOf(t, file("new", "x"))))
	old, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullIfNotPresent})
	if err != nil || strings.HasSuffix(old.Digest, moved.String()) {
		t.Errorf("IfNotPresent followed the tag: %v %v", old.Digest, err)
	}
	img, err := m.Ensure(t.Context(), PullRequest{Ref: ref, Policy: corev1.PullAlways})
	if err != nil || !strings.HasSuffix(img.Digest, moved.String()) {
		t.Errorf("Always did not follow the tag: %v %v", img.Digest, err)
	}
	// The old image keeps its digest but not its tag.
	if got, ok, err := m.Get(t.Context(), old.Digest); !ok || err != nil || got.Ref == ref {
		t.Errorf("old image: %+v %v %v", got, ok, err)
	}
}

func TestFailuresAndBackOff(t *testing.T) {
	m := testManager(t, nil)
	reg := newRegistry(t, nil)
	rec := &recorder{}
	ref := reg.host + "/missing:v1"
	req := PullRequest{Ref: ref, Policy: corev1.PullIfNotPresent, Event: rec.add}
	_, err := m.Ensure(t.Context(), req)
	e := wantReason(t, err, "ErrImagePull")
	if e.RetryAt.IsZero() {
		t.Error("no RetryAt")
	}
	wantEvents(t, rec, `Normal Pulling`, `Warning Failed Failed to pull image ".*": `, `Warning Failed Error: ErrImagePull`)
	_, err = m.Ensure(t.Context(), req)
	wantReason(t, err, "ImagePullBackOff")
	if !strings.Contains(err.Error(), `Back-off pulling image "`+ref+`": ErrImagePull: `) {
		t.Errorf("message %q", err)
	}
	wantEvents(t, rec, `Normal BackOff Back-off pulling image "`, `Warning Failed Error: ImagePullBackOff`)

	for _, bad := range []string{"Bad", "a b", "", "host/:tag", "x@sha256:12", strings.Repeat("a", 300)} {
		_, err := m.Ensure(t.Context(), PullRequest{Ref: bad, Event: rec.add})
		wantReason(t, err, "InvalidImageName")
		wantEvents(t, rec, `Warning InspectFailed Failed to apply default image tag`, `Warning Failed Error: InvalidImageName`)
	}
}
