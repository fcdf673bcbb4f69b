package images

import (
	"slices"
	"strings"
)

// Verification says of which images that are present a pod has to prove that it may pull them
// (a kubelet's imagePullCredentialsVerificationPolicy, KEP-2535). What was pulled without a login
// is everybody's under each of them.
type Verification struct {
	// Policy is one of the constants below; empty is NeverVerifyPreloadedImages.
	Policy string
	// Allowlist names repositories without tag and digest, or ends in /* for all below, for
	// NeverVerifyAllowlistedImages.
	Allowlist []string
}

// The policies, as a kubelet names them.
const (
	NeverVerify                  = "NeverVerify"
	NeverVerifyPreloadedImages   = "NeverVerifyPreloadedImages"
	NeverVerifyAllowlistedImages = "NeverVerifyAllowlistedImages"
	AlwaysVerify                 = "AlwaysVerify"
)

// exempts says whether pods need no proof for what is in the repository.
func (v Verification) exempts(repo string, access Access) bool {
	switch v.Policy {
	case NeverVerify:
		return true
	case NeverVerifyAllowlistedImages:
		return slices.ContainsFunc(v.Allowlist, func(pattern string) bool { return allowlists(pattern, repo) })
	case AlwaysVerify:
		return false
	}
	return access.Preloaded
}

func allowlists(pattern, repo string) bool {
	prefix, all := strings.CutSuffix(pattern, "/*")
	if all {
		pattern = prefix + "/all"
	}
	ref, err := parseRef(pattern) // with Docker's defaults
	switch {
	case err != nil:
		return false
	case all:
		return strings.HasPrefix(repo, strings.TrimSuffix(ref.repo(), "all"))
	}
	return ref.repo() == repo
}
