package kubeletapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
)

// A kubelet's cache times (KubeletConfiguration authentication.webhook and authorization.webhook).
const (
	tokenCache   = 2 * time.Minute
	allowCache   = 5 * time.Minute
	denyCache    = 30 * time.Second
	reviewBudget = 10 * time.Second
)

// reviewBackoff spaces the repetitions of a review that the API server did not answer.
var reviewBackoff = wait.Backoff{Duration: 250 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 4}

// auth decides who may ask what. There is no way in without an identity.
type auth struct {
	nodeName string
	authn    authenticator.Request
	authz    authorizer.Authorizer
	log      *slog.Logger
}

func newAuth(nodeName string, client kubernetes.Interface, ca dynamiccertificates.CAContentProvider, log *slog.Logger) (*auth, error) {
	authn, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:            client.AuthenticationV1(),
		TokenAccessReviewTimeout:           reviewBudget,
		WebhookRetryBackoff:                &reviewBackoff,
		CacheTTL:                           tokenCache,
		ClientCertificateCAContentProvider: ca,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("make authenticator: %w", err)
	}
	authz, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: client.AuthorizationV1(),
		AllowCacheTTL:             allowCache,
		DenyCacheTTL:              denyCache,
		WebhookRetryBackoff:       &reviewBackoff,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("make authorizer: %w", err)
	}
	return &auth{nodeName: nodeName, authn: authn, authz: authz, log: log}, nil
}

// protect lets only requests through that are authenticated and authorized.
func (a *auth) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok, err := a.authn.AuthenticateRequest(r)
		if err != nil || !ok {
			if err != nil {
				a.log.Debug("request refused", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
			}
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		switch allowed, subresource, err := a.allowed(r.Context(), who.User, r); {
		case err != nil:
			a.log.Warn("cannot authorize a request", "user", who.User.GetName(), "path", r.URL.Path, "err", err)
			http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)",
				who.User.GetName(), verb(r.Method), subresource), http.StatusInternalServerError)
		case !allowed:
			a.log.Info("request forbidden", "user", who.User.GetName(), "path", r.URL.Path)
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)",
				who.User.GetName(), verb(r.Method), subresources(r.URL.Path)), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// allowed asks for each sub-resource in turn; one that is granted suffices. The last that was
// asked for is told.
func (a *auth) allowed(ctx context.Context, who user.Info, r *http.Request) (ok bool, subresource string, err error) {
	for _, subresource = range subresources(r.URL.Path) {
		decision, _, err := a.authz.Authorize(ctx, authorizer.AttributesRecord{
			User: who, Verb: verb(r.Method), APIVersion: "v1", Resource: "nodes", Subresource: subresource,
			Name: a.nodeName, ResourceRequest: true, Path: r.URL.Path,
		})
		if err != nil {
			return false, subresource, err
		}
		if decision == authorizer.DecisionAllow {
			return true, subresource, nil
		}
	}
	return false, subresource, nil
}

// verb is the API verb of a method, "" for one that has none.
func verb(method string) string {
	return map[string]string{
		http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update",
		http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[method]
}

// subresources of nodes that open a path, as kubelet 1.35 has them (KubeletFineGrainedAuthz):
// the finer one first, then nodes/proxy for those who had that before.
func subresources(path string) []string {
	for _, rule := range []struct {
		prefix string
		names  []string
	}{
		{"/stats", []string{"stats"}},
		{"/metrics", []string{"metrics"}},
		{"/logs", []string{"log"}},
		{"/checkpoint", []string{"checkpoint"}},
		{"/statusz", []string{"statusz"}},
		{"/flagz", []string{"configz"}},
		{"/pods", []string{"pods", "proxy"}},
		{"/runningpods", []string{"pods", "proxy"}},
		{"/healthz", []string{"healthz", "proxy"}},
		{"/configz", []string{"configz", "proxy"}},
	} {
		if path == rule.prefix || strings.HasPrefix(path, rule.prefix+"/") {
			return rule.names
		}
	}
	return []string{"proxy"}
}
