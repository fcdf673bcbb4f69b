package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vk-metal/vk-metal/internal/durable"
)

func readCheckpoint(path string) (map[string]*claim, error) {
	claims := map[string]*claim{}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return claims, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*claim
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, c := range list {
		claims[c.key()] = c
	}
	return claims, nil
}

// save replaces the file, on the disk when it returns: what a plugin was asked for must be taken
// back even after a power cut. The lock is held.
func (m *Manager) save() error {
	list := make([]*claim, 0, len(m.claims))
	for _, c := range m.claims {
		list = append(list, c)
	}
	data, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("keep resource claims: %w", err)
	}
	if err := durable.Replace(m.checkpointPath(), data); err != nil {
		return fmt.Errorf("keep resource claims: %w", err)
	}
	return nil
}
