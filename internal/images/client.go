package images

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types beside the OCI ones.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerManifestList,
}, ", ")

// host is one endpoint opened for one repository with one credential.
type host struct {
	ep   endpoint
	repo string
	http *http.Client
	base *http.Transport
}

// openHost connects and authenticates. Close it after use.
func (m *Manager) openHost(ctx context.Context, ep endpoint, ref imageRef, cred credential) (*host, error) {
	base, err := newTransport(ep)
	if err != nil {
		return nil, err
	}
	rt := &endpointTransport{ep: ep, registry: ref.registry(), inner: base}
	var how []name.Option
	if ep.scheme == "http" {
		how = append(how, name.Insecure)
	}
	registry, err := name.NewRegistry(ep.host, how...)
	if err != nil {
		return nil, fmt.Errorf("use registry host %q: %w", ep.host, err)
	}
	repo := registry.Repo(ref.repository())
	authed, err := transport.NewWithContext(ctx, registry, cred.authenticator(),
		transport.NewUserAgent(rt, m.opts.UserAgent), []string{repo.Scope(transport.PullScope)})
	if err != nil {
		base.CloseIdleConnections()
		return nil, err
	}
	return &host{ep: ep, repo: ref.repository(), http: &http.Client{Transport: authed}, base: base}, nil
}

func (h *host) close() { h.base.CloseIdleConnections() }

func newTransport(ep endpoint) (*http.Transport, error) {
	dial := ep.dialTimeout
	setDefault(&dial, 30*time.Second)
	cfg, err := tlsConfig(ep)
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       cfg,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: 5 * time.Second,
		MaxIdleConns:          10,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
	}, nil
}

func tlsConfig(ep endpoint) (*tls.Config, error) {
	cfg := &tls.Config{InsecureSkipVerify: ep.skipVerify, MinVersion: tls.VersionTLS12} //nolint:gosec // the administrator's skip_verify
	for _, file := range ep.ca {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read registry CA: %w", err)
		}
		if cfg.RootCAs == nil {
			if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
				cfg.RootCAs = x509.NewCertPool()
			}
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read registry CA %s: no certificate in it", file)
		}
	}
	for _, pair := range ep.client {
		key := pair[1]
		setDefault(&key, pair[0])
		cert, err := tls.LoadX509KeyPair(pair[0], key)
		if err != nil {
			return nil, fmt.Errorf("read registry client certificate: %w", err)
		}
		cfg.Certificates = append(cfg.Certificates, cert)
	}
	return cfg, nil
}

// endpointTransport sends requests for /v2/ of the endpoint's host to the endpoint's scheme and
// path, with its headers. Other hosts (token servers, storage behind redirects) are left alone.
type endpointTransport struct {
	ep       endpoint
	registry string
	inner    http.RoundTripper
}

func (t *endpointTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	resp, err := t.send(in)
	if err != nil {
		return nil, err
	}
	// Blobs, and what a redirect leads to, are bounded by their reader; everything else is read
	// whole by the libraries, errors and tokens too.
	content := resp.StatusCode/100 == 2 && (in.Response != nil || strings.Contains(in.URL.Path, "/blobs/"))
	if !content {
		resp.Body = &limitedBody{Reader: io.LimitReader(resp.Body, maxManifestBytes+1), Closer: resp.Body}
	}
	return resp, nil
}

type limitedBody struct {
	io.Reader
	io.Closer
}

func (t *endpointTransport) send(in *http.Request) (*http.Response, error) {
	if in.URL.Host != t.ep.host || !strings.HasPrefix(in.URL.Path, "/v2/") {
		return t.inner.RoundTrip(in)
	}
	req := in.Clone(in.Context())
	req.URL.Scheme = t.ep.scheme
	for name, values := range t.ep.header {
		req.Header[name] = values
	}
	if in.URL.Path == "/v2/" {
		return t.ping(req)
	}
	req.URL.Path = t.ep.path + strings.TrimPrefix(in.URL.Path, "/v2")
	req.URL.RawPath = ""
	if t.ep.mirror {
		q := req.URL.Query()
		q.Set("ns", t.registry)
		req.URL.RawQuery = q.Encode()
	}
	return t.inner.RoundTrip(req)
}

// ping asks how to authenticate. A mirror below a path of its own may not know /v2/ at all: that
// means no authentication, and the next request tells the truth.
func (t *endpointTransport) ping(req *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(req)
	if err != nil || t.ep.path == "/v2" {
		return resp, err
	}
	if c := resp.StatusCode; c != http.StatusUnauthorized && c/100 == 4 {
		resp.StatusCode, resp.Status = http.StatusOK, "200 OK"
	}
	return resp, nil
}

// url of a part of the repository, such as manifests/latest.
func (h *host) url(kind, name string) string {
	u := url.URL{Scheme: h.ep.scheme, Host: h.ep.host, Path: "/v2/" + h.repo + "/" + kind + "/" + name}
	return u.String()
}

func (h *host) do(ctx context.Context, method, url string, header http.Header, codes ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, codes...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// resolve asks for a tag's digest without its content; empty where the server does not say.
func (h *host) resolve(ctx context.Context, tag string) (digest.Digest, error) {
	resp, err := h.do(ctx, http.MethodHead, h.url("manifests", tag), http.Header{"Accept": {manifestTypes}}, http.StatusOK)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return "", nil //nolint:nilerr // the content is fetched and hashed instead
	}
	return d, nil
}

// manifest fetches a manifest or index by tag or digest; the digest is computed, and checked
// when it was given.
func (h *host) manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	resp, err := h.do(ctx, http.MethodGet, h.url("manifests", ref), http.Header{"Accept": {manifestTypes}}, http.StatusOK)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	data, err := readLimited(resp.Body, maxManifestBytes)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("read manifest %s: %w", ref, err)
	}
	got := digest.FromBytes(data)
	if want, err := digest.Parse(ref); err == nil {
		got = want.Algorithm().FromBytes(data)
		if got != want {
			return ocispec.Descriptor{}, nil, fmt.Errorf("read manifest %s: content has digest %s", want, got)
		}
	}
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return ocispec.Descriptor{MediaType: strings.TrimSpace(mediaType), Digest: got, Size: int64(len(data))}, data, nil
}

// readLimited reads everything, or fails when there is more than limit.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("larger than the limit of %d bytes", limit)
	}
	return data, nil
}

// blob opens a blob from offset on; ok tells whether the server honoured the offset.
func (h *host) blob(ctx context.Context, d digest.Digest, offset int64) (body io.ReadCloser, ok bool, err error) {
	header := http.Header{"Accept-Encoding": {"identity"}}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := h.do(ctx, http.MethodGet, h.url("blobs", d.String()), header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, false, err
	}
	return resp.Body, resp.StatusCode == http.StatusPartialContent, nil
}
