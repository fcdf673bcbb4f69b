package rig

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRootKeyFollowsRecipe(t *testing.T) {
	a, err := DefaultRoot().key()
	if err != nil {
		t.Fatal(err)
	}
	other := DefaultRoot()
	other.Offline = append(other.Offline, "tcpdump")
	if b, _ := other.key(); a == b {
		t.Errorf("key() = %s for two recipes", a)
	}
	if again, _ := DefaultRoot().key(); a != again {
		t.Errorf("key() = %s, then %s", a, again)
	}
}

func TestFindMirror(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  mirror
		fails bool
	}{
		{
			name: "deb822 with comments, updates and a third party first",
			files: map[string]string{
				"sources.list.d/a.sources": "Types: deb\nURIs: https://other.example/repo\nSuites: nodistro\nComponents: main\n",
				"sources.list.d/debian.sources": "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\n" +
					"Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://security.example/\nSuites: bookworm-security\nComponents: main\n",
			},
			want: mirror{uri: "http://mirror.example/debian", keyring: "/k.gpg"},
		},
		{
			name: "one-line form",
			files: map[string]string{
				"sources.list": "# deb http://no.example/debian bookworm main\ndeb-src http://no.example/debian bookworm main\n" +
					"deb [arch=amd64 signed-by=/o.gpg] http://mirror.example/debian trixie main contrib # why\n",
			},
			want: mirror{uri: "http://mirror.example/debian", keyring: "/o.gpg"},
		},
		{
			name: "disabled stanza, mirror list",
			files: map[string]string{
				"sources.list.d/d.sources": "Enabled: no\nTypes: deb\nURIs: http://no.example\nSuites: bookworm\nComponents: main\n\n" +
					"Types: deb deb-src\nURIs: mirror+file:DIR/mirrors\nSuites:\n bookworm\nComponents: main\n",
				"mirrors": "# first\nhttp://listed.example/debian/\tpriority:1\n",
			},
			want: mirror{uri: "http://listed.example/debian", keyring: debianKeyring},
		},
		{name: "none", files: map[string]string{"sources.list": ""}, fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range tt.files {
				writeTestFile(t, filepath.Join(dir, name), replaceDir(content, dir))
			}
			got, err := findMirror(dir)
			if (err != nil) != tt.fails || got != tt.want {
				t.Errorf("findMirror() = %+v, %v; want %+v, failure %v", got, err, tt.want, tt.fails)
			}
		})
	}
}

func writeTestFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
