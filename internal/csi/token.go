package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// tokensAttribute is where drivers find the tokens that they asked for.
const tokensAttribute = "csi.storage.k8s.io/serviceAccount.tokens"

type tokenKey struct {
	uid      types.UID
	audience string
}

// heldToken is used again until it is due.
type heldToken struct {
	status authv1.TokenRequestStatus
	due    time.Time
}

// tokensFor has tokens of the pod's service account for the audiences that the driver names.
func (m *Manager) tokensFor(ctx context.Context, pod *corev1.Pod, requests []storagev1.TokenRequest) (map[string]string, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	statuses := map[string]authv1.TokenRequestStatus{}
	for _, request := range requests {
		status, err := m.token(ctx, pod, request)
		if err != nil {
			return nil, fmt.Errorf("failed to get service account token attributes: %w", err)
		}
		statuses[request.Audience] = status
	}
	data, err := json.Marshal(statuses)
	if err != nil {
		return nil, err
	}
	return map[string]string{tokensAttribute: string(data)}, nil
}

func (m *Manager) token(ctx context.Context, pod *corev1.Pod, request storagev1.TokenRequest) (authv1.TokenRequestStatus, error) {
	key := tokenKey{pod.UID, request.Audience}
	m.mu.Lock()
	held, ok := m.tokens[key]
	m.mu.Unlock()
	asked := time.Now()
	if ok && asked.Before(held.due) {
		return held.status, nil
	}
	spec := authv1.TokenRequestSpec{
		ExpirationSeconds: request.ExpirationSeconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if request.Audience != "" {
		spec.Audiences = []string{request.Audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	answer, err := m.o.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, &authv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return authv1.TokenRequestStatus{}, err
	}
	life := answer.Status.ExpirationTimestamp.Sub(asked)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[key] = heldToken{answer.Status, asked.Add(life * 8 / 10)}
	return answer.Status, nil
}

// dropTokens forgets a pod's tokens.
func (m *Manager) dropTokens(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.tokens {
		if key.uid == uid {
			delete(m.tokens, key)
		}
	}
}
