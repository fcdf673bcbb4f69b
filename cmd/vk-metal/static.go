package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// staticPods follows the manifests of the configuration's directory.
func (a *agent) staticPods(ctx context.Context, changed func(staticpods.Set)) error {
	return staticpods.Run(ctx, staticpods.Options{
		Dir: a.cfg.StaticPodPath, Node: a.name, Changed: changed, Log: a.log,
		Invalid: func(err error) {
			a.log.Error("Cannot use a static pod's manifest", "err", err)
			a.recorder.Event(a.nodeReference(), corev1.EventTypeWarning, "InvalidStaticPod", err.Error())
		},
	})
}
