package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// provide makes a plugin that counts its calls in the file calls, and its configuration.
func provide(t *testing.T, script, entry string) (config, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := "#!/bin/sh\necho x >>" + dir + "/calls\ncat >" + dir + "/request\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "plugin"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(dir, "config.yaml")
	text := "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- " + strings.ReplaceAll(strings.TrimSpace(entry), "\n", "\n  ") + "\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config, dir
}

const plainEntry = `name: plugin
matchImages: ["*.example.com", "reg.example.org:5000/team"]
defaultCacheDuration: 1h
apiVersion: credentialprovider.kubelet.k8s.io/v1
args: [one]
env: [{name: WHO, value: me}]`

func answer(kind, duration, auth string) string {
	return fmt.Sprintf(`echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"%s",%s"auth":{%s}}'`, kind, duration, auth)
}

func load(t *testing.T, script string) (*CredentialProviders, string) {
	t.Helper()
	config, dir := provide(t, script, plainEntry)
	c, err := LoadCredentialProviders(config, dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func calls(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		return 0
	}
	return strings.Count(string(data), "x")
}

func TestCredentialProvidersAnswerAndAreCached(t *testing.T) {
	for kind, want := range map[string]int{"Image": 3, "Registry": 2, "Global": 1} {
		t.Run(kind, func(t *testing.T) {
			c, dir := load(t, `[ "$1 $WHO" = "one me" ] || exit 1; `+answer(kind, "", `"*.example.com":{"username":"u","password":"p"},"other.org":{"username":"no"}`))
			for _, repo := range []string{"a.example.com/x", "a.example.com/x", "a.example.com/y", "b.example.com/x", "example.com/x", "other.org/x"} {
				list, errs := c.logins(t.Context(), repo, nil)
				matches := strings.HasSuffix(strings.Split(repo, "/")[0], ".example.com")
				if len(errs) > 0 || matches != (len(list) == 1) {
					t.Fatalf("%s: %v %v", repo, list, errs)
				}
				if matches && (list[0].auth.Username != "u" || list[0].auth.Password != "p" || list[0].hash != "node:plugin") {
					t.Errorf("%s: %+v", repo, list[0])
				}
			}
			if got := calls(t, dir); got != want {
				t.Errorf("called %d times, want %d", got, want)
			}
			request, err := os.ReadFile(filepath.Join(dir, "request"))
			if err != nil || !strings.Contains(string(request), `"kind":"CredentialProviderRequest"`) || !strings.Contains(string(request), `"image":"`) {
				t.Errorf("request %s %v", request, err)
			}
		})
	}
}

func TestAnswersThatMayNotBeKept(t *testing.T) {
	c, dir := load(t, answer("Global", `"cacheDuration":"0s",`, `"a.example.com":{"username":"u"}`))
	for range 2 {
		if list, errs := c.logins(t.Context(), "a.example.com/x", nil); len(list) != 1 || len(errs) > 0 {
			t.Fatalf("%v %v", list, errs)
		}
	}
	if got := calls(t, dir); got != 2 {
		t.Errorf("called %d times", got)
	}
}

func TestBadAnswers(t *testing.T) {
	for name, script := range map[string]string{
		"fails": "echo broken >&2; exit 3", "garbage": "echo secret", "kind": `echo '{"apiVersion":"v1","kind":"Pod"}'`,
		"cache key": answer("Odd", "", ""), "endless": "yes", "hangs": "exec sleep 1000",
	} {
		c, _ := load(t, script)
		if name == "hangs" {
			c.timeout = time.Millisecond
		}
		list, errs := c.logins(context.Background(), "a.example.com/x", nil)
		if len(list) != 0 || len(errs) != 1 || strings.Contains(errs[0].Error(), "secret") {
			t.Errorf("%s: %v %v", name, list, errs)
		}
	}
}

func TestBadProviderConfigs(t *testing.T) {
	for change, want := range map[string]string{
		"name: plugin -> name: ../plugin": "name",
		"name: plugin -> name: absent":    "name",
		"apiVersion: credentialprovider.kubelet.k8s.io/v1 -> apiVersion: credentialprovider.kubelet.k8s.io/v1beta1": "apiVersion",
		"defaultCacheDuration: 1h -> # none":                                             "defaultCacheDuration",
		`matchImages: ["*.example.com", "reg.example.org:5000/team"] -> matchImages: []`: "matchImages",
		"args: [one] -> unknown: 1":                                                      "unknown",
	} {
		from, to, _ := strings.Cut(change, " -> ")
		config, dir := provide(t, "", strings.Replace(plainEntry, from, to, 1))
		if _, err := LoadCredentialProviders(config, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", change, err)
		}
	}
}
