package podplan

import corev1 "k8s.io/api/core/v1"

// init decides on init containers and sidecars and sets Initialized. It says whether the
// pod has failed by one of them.
func (d *decider) init() (failed bool) {
	if d.rebootEndsPod() {
		d.rebooted = true
		d.out.Initialized = true
		return false
	}
	before := d.mainStarted()
	for _, c := range Containers(d.pod) {
		done := true
		switch {
		case c.Role == RoleSidecar:
			done = d.sidecar(c)
		case c.Role == RoleInit && !before:
			done, failed = d.initContainer(c)
		}
		if failed {
			return true
		}
		if !done && !before {
			return false
		}
	}
	d.out.Initialized = true
	return false
}

// mainStarted says whether the pod has been initialized since this boot.
func (d *decider) mainStarted() bool {
	for _, c := range d.pod.Spec.Containers {
		if last, ok := d.obs.latest(c.Name); ok && !d.obs.Stale(d.pod, last) && last.Phase != Prepared {
			return true
		}
	}
	return false
}

// rebootEndsPod says that nothing of the pod is run anew after a reboot, or the end of its
// sandbox, because its containers must not be restarted or have all done their work.
func (d *decider) rebootEndsPod() bool {
	if len(d.obs.triggers(d.pod)) > 0 {
		return false
	}
	stale := false
	for _, c := range Containers(d.pod) {
		if c.Role == RoleEphemeral {
			continue
		}
		last, ok := d.obs.latest(c.Name)
		if ok && !d.obs.Stale(d.pod, last) {
			return false
		}
		stale = stale || ok
		if c.Role == RoleMain && (!ok && d.pod.Spec.RestartPolicy != corev1.RestartPolicyNever || ok && Restarts(d.pod, c, last.ExitCode)) {
			return false
		}
	}
	return stale
}

// initContainer runs one init container to success.
func (d *decider) initContainer(c Container) (done, failed bool) {
	last, ok := d.obs.latest(c.Name)
	switch {
	case !ok || last.Phase != Ended:
	case d.obs.outdated(d.pod, c, last):
		d.startAnew(c, last)
		return false, false
	case d.obs.Stale(d.pod, last):
		d.start(c, last.Number+1, 0) // the sandbox is new: it runs anew
		return false, false
	}
	if ok && last.Phase == Ended && !last.Failed() {
		return true, false
	}
	ended, _ := d.container(c)
	return false, ended
}

// sidecar keeps a restartable init container running and says whether it has started.
func (d *decider) sidecar(c Container) (started bool) {
	last, ok := d.obs.latest(c.Name)
	_, _ = d.container(c)
	return ok && last.Phase == Running && last.Started && last.PostStart != HookRunning && last.PostStart != HookFailed
}

// waitForInit marks the containers that wait for init containers.
func (d *decider) waitForInit() {
	starting := map[string]bool{}
	for _, s := range d.out.Start {
		starting[s.Container] = true
	}
	for _, c := range Containers(d.pod) {
		_, attempted := d.obs.latest(c.Name)
		_, waits := d.out.Waiting[c.Name]
		if c.Role != RoleEphemeral && !attempted && !waits && !starting[c.Name] {
			d.out.Waiting[c.Name] = Waiting{Reason: "PodInitializing"}
		}
	}
}
