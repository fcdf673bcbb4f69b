package devices

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/vk-metal/vk-metal/internal/durable"
)

// loans are what containers have: by pod UID, container and resource.
type loans map[string]map[string]map[string]*loan

// loan is one resource of one container.
type loan struct {
	IDs []string `json:"ids"`
	// Answer is what the plugin said about how the devices get into the container.
	Answer *deviceapi.ContainerAllocateResponse `json:"answer,omitempty"`
}

type checkpoint struct {
	// Resources are those that plugins have registered, for what comes before they do so again.
	Resources []string `json:"resources"`
	Lent      loans    `json:"lent"`
}

func readCheckpoint(path string) (resources []string, lent loans, err error) {
	var c checkpoint
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, loans{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if c.Lent == nil {
		c.Lent = loans{}
	}
	return c.Resources, c.Lent, nil
}

// writeCheckpoint replaces the file as a whole, on the disk when it returns: a device must not
// be lent twice after a power cut.
func writeCheckpoint(path string, resources []string, lent loans) error {
	data, err := json.Marshal(checkpoint{resources, lent})
	if err != nil {
		return err
	}
	return durable.Replace(path, data)
}
