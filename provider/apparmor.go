package provider

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// AppArmor is the host's; *apparmor.Host implements it.
type AppArmor interface {
	// EnsureDefault loads the default profile unless it is, and returns its name.
	EnsureDefault() (string, error)
	// Loaded says whether the kernel has a profile.
	Loaded(name string) (bool, error)
}

// appArmor is the name of the profile that confines the container, "" for none. A default
// that the pod did not ask for is left out where it cannot be had, as containerd does; all
// else is an error.
func (w *worker) appArmor(pod *corev1.Pod, c podplan.Container) (string, error) {
	wanted, err := podplan.AppArmorOf(pod, c)
	if err != nil || wanted.Type == corev1.AppArmorProfileTypeUnconfined {
		return "", err
	}
	host := w.p.deps.AppArmor
	refused := func(message string) (string, error) {
		return "", &podplan.ConfigError{Reason: podplan.CreateContainerError, Message: message}
	}
	switch {
	case host == nil || !w.p.deps.Node.AppArmor:
		if wanted.Explicit { // admission has said so before
			return refused("apparmor is not supported")
		}
		return "", nil
	case wanted.Type == corev1.AppArmorProfileTypeLocalhost:
		loaded, err := host.Loaded(wanted.Name)
		if err != nil {
			return refused(err.Error())
		}
		if !loaded {
			return refused(fmt.Sprintf("apparmor profile not found %s", wanted.Name))
		}
		return wanted.Name, nil
	}
	name, err := host.EnsureDefault()
	switch {
	case err == nil:
		return name, nil
	case wanted.Explicit:
		return refused(err.Error())
	default:
		w.p.appArmorMissing.Do(func() {
			w.log.Warn("Containers that name no AppArmor profile run without one", "err", err)
		})
		return "", nil
	}
}
