package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/registry"
)

// maxArg is the kernel's MAX_ARG_STRLEN without the terminating NUL.
const maxArg = 131071

func TestImageThatDoesNotExist(t *testing.T) {
	e := setup(t)
	pod := e.busybox("none", "true")
	pod.Spec.Containers[0].Image = "registry.k8s.io/e2e-test-images/no-such-image:1"
	e.create(pod)
	e.waitPod("none", podTimeout, waiting("ErrImagePull", "ImagePullBackOff"))
	e.waitPod("none", podTimeout, waiting("ImagePullBackOff"))
	e.remove("none", time.Minute)
}

func TestCommandThatCannotRun(t *testing.T) {
	e := setup(t)
	cases := map[string]struct {
		command []string
		code    int32
	}{
		"not-found":      {[]string{"/no/such/program"}, 127},
		"not-in-path":    {[]string{"no-such-program"}, 127},
		"not-executable": {[]string{"/etc/passwd"}, 126},
	}
	for name, c := range cases {
		pod := e.busybox(name, "")
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		pod.Spec.Containers[0].Command = c.command
		e.create(pod)
		ended := e.waitPod(name, podTimeout, phase(corev1.PodFailed))
		state := ended.Status.ContainerStatuses[0].State.Terminated
		// A kubelet with containerd says 128 when the program could not be started at all.
		if state == nil || state.Reason != "StartError" || (state.ExitCode != c.code && state.ExitCode != 128) {
			t.Errorf("%s: terminated as %+v, want StartError with %d or 128", name, state, c.code)
		}
	}
}

func TestMissingConfigMapHeals(t *testing.T) {
	e := setup(t)
	pod := e.busybox("waits", `echo "$KEY"; sleep 3600`)
	pod.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{
		ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}},
	}}
	e.create(pod)
	e.waitPod("waits", podTimeout, waiting("CreateContainerConfigError"))
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}, Data: map[string]string{"KEY": "value"}}
	if _, err := e.c.Client.CoreV1().ConfigMaps(e.ns).Create(e.Context(), configMap, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e.waitPod("waits", podTimeout, running)
	e.waitLog("waits", "value\n")
}

// hostileStrings are what a unit file, a shell or a specifier would take apart.
var hostileStrings = map[string]string{
	"newline":   "a\nExecStartPost=/bin/touch /injected\nb",
	"specifier": "%n %h %% %i %u %",
	"dollar":    "$HOME ${HOME} $$ $",
	"quotes":    `"double" 'single' \"escaped\" \`,
	"controls":  "\x01\x02\x1b[31m\x7f\t\r",
	"spaces":    "  leading and trailing  ",
	"unicode":   "žluťoučký kůň \u202e 🐎",
	"empty":     "",
	"bytes":     string([]rune{0x80, 0xff, 0xfffd}),
	"long":      strings.Repeat("x", maxArg),
}

// TestHostileStringsArriveExactly sends every hostile string as an argument and as an
// environment variable and reads the bytes that the process got.
func TestHostileStringsArriveExactly(t *testing.T) {
	e := setup(t)
	for name, value := range hostileStrings {
		t.Run(name, func(t *testing.T) {
			pod := e.busybox("hostile-"+name, `printf '%s' "$1" | base64 -w0; echo; printf '%s' "$EVIL" | base64 -w0; echo`)
			pod.Spec.RestartPolicy = corev1.RestartPolicyNever
			container := &pod.Spec.Containers[0]
			// Kubernetes itself takes "$$" for "$" and "$(NAME)" for a variable.
			escaped := strings.ReplaceAll(value, "$", "$$")
			container.Command = append(container.Command, "sh", escaped)
			variable := value[:min(len(value), maxArg-len("EVIL="))]
			container.Env = []corev1.EnvVar{{Name: "EVIL", Value: strings.ReplaceAll(variable, "$", "$$")}}
			e := e.in(t)
			e.create(pod)
			e.waitPod(pod.Name, podTimeout, phase(corev1.PodSucceeded))
			want := encode(value) + "\n" + encode(variable) + "\n"
			if got := e.logs(pod.Name, &corev1.PodLogOptions{}); got != want {
				t.Errorf("got %.200q, want %.200q", got, want)
			}
		})
	}
	for _, machine := range e.c.Machines() {
		if out, err := machine.Run(e.Context(), "find", "/", "-xdev", "-maxdepth", "1", "-name", "injected"); err != nil || out != "" {
			t.Errorf("%s: injected file %q, %v", machine.Name, out, err)
		}
	}
}

func TestArgumentThatTheKernelRefuses(t *testing.T) {
	e := setup(t)
	pod := e.busybox("too-long", "true")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Args = []string{strings.Repeat("x", maxArg+1)}
	e.create(pod)
	ended := e.waitPod("too-long", podTimeout, phase(corev1.PodFailed))
	state := ended.Status.ContainerStatuses[0].State.Terminated
	if state == nil || state.Reason != "StartError" || !strings.Contains(state.Message, "arg") {
		t.Errorf("terminated as %+v", state)
	}
}

// TestWorkloadCannotSpeakToSystemd forges a main PID for its own unit.
func TestWorkloadCannotSpeakToSystemd(t *testing.T) {
	e := setup(t)
	pod := e.busybox("forger", `echo "socket=$NOTIFY_SOCKET"; ls -A /run/systemd 2>/dev/null; `+
		`printf 'MAINPID=1\nSTOPPING=1' | nc -U -u -w1 /run/systemd/notify 2>&1; sleep 3600`)
	pod.Spec.Containers[0].Image = registry.Agnhost
	e.create(pod)
	running := e.waitPod("forger", podTimeout, running)
	before := e.podUnits(running)
	e.exec(running, "bash", "-c", `printf 'MAINPID=1\nSTOPPING=1' | nc -U -u -w1 /run/systemd/notify; true`)
	after := e.podUnits(running)
	if len(before) != 1 || len(after) != 1 {
		t.Fatalf("units %v became %v", before, after)
	}
	for unit, pid := range before {
		if after[unit] != pid {
			t.Errorf("%s: main process %s became %s", unit, pid, after[unit])
		}
	}
	e.eventually(time.Minute, func() string {
		if log := e.logs("forger", &corev1.PodLogOptions{}); !strings.HasPrefix(log, "socket=\n") {
			return fmt.Sprintf("the workload sees systemd: %q", log)
		}
		return ""
	})
}

func encode(value string) string { return base64.StdEncoding.EncodeToString([]byte(value)) }
