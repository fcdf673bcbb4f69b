package hostlogs

import (
	"net/url"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What a kubelet lets clients ask for.
const (
	maxServices = 4
	maxName     = 256
	maxTail     = 100_000
)

// strange is what no name of a service may hold.
var strange = regexp.MustCompile(`[^a-zA-Z0-9_@-]`)

// query is what a client asks for. Names with a slash are files.
type query struct {
	services, files []string
	options
}

// options choose among a service's lines; nil is everything.
type options struct {
	since, until *time.Time
	tail, boot   *int
	pattern      string
}

func (q *query) empty() bool {
	return len(q.services) == 0 && len(q.files) == 0 && q.options == options{}
}

// parse reads a URL's query; what it does not know it leaves alone.
func parse(values url.Values) (*query, error) {
	q, errs := &query{}, field.ErrorList{}
	for _, name := range values["query"] {
		switch {
		case strings.ContainsAny(name, `/\`):
			q.files = append(q.files, strings.ReplaceAll(name, `\`, "/"))
		case strings.TrimSpace(name) != "":
			q.services = append(q.services, name)
		}
	}
	if values.Has("query") && len(q.services)+len(q.files) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("query"), values["query"], "query cannot be empty"))
	}
	for key, at := range map[string]**time.Time{"sinceTime": &q.since, "untilTime": &q.until} {
		if text := values.Get(key); text != "" {
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				errs = append(errs, field.Invalid(field.NewPath(key), text, "invalid time format"))
			}
			*at = &t
		}
	}
	for key, number := range map[string]**int{"tailLines": &q.tail, "boot": &q.boot} {
		if text := values.Get(key); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				errs = append(errs, field.Invalid(field.NewPath(key), text, err.Error()))
			}
			*number = &n
		}
	}
	q.pattern = values.Get("pattern")
	return q, errs.ToAggregate()
}

// check finds what cannot be asked for.
func (q *query) check() error {
	errs := q.checkNames()
	if q.since != nil && q.until != nil && q.since.After(*q.until) {
		errs = append(errs, field.Invalid(field.NewPath("untilTime"), q.until, "must be after `sinceTime`"))
	}
	if q.boot != nil && *q.boot > 0 {
		errs = append(errs, field.Invalid(field.NewPath("boot"), *q.boot, "must be less than 1"))
	}
	if q.tail != nil && (*q.tail < 0 || *q.tail > maxTail) {
		errs = append(errs, field.Invalid(field.NewPath("tailLines"), *q.tail, "must be between 0 and 100000, inclusive"))
	}
	if _, err := syntax.Parse(q.pattern, syntax.Perl); err != nil || strings.ContainsRune(q.pattern, 0) {
		errs = append(errs, field.Invalid(field.NewPath("pattern"), q.pattern, "must be a regular expression"))
	}
	return errs.ToAggregate()
}

func (q *query) checkNames() field.ErrorList {
	errs, at := field.ErrorList{}, field.NewPath("query")
	for _, name := range q.services {
		if len(name) > maxName {
			errs = append(errs, field.TooLong(at, name, maxName))
		} else if strange.MatchString(name) {
			errs = append(errs, field.Invalid(at, name, "input contains unsupported characters"))
		}
	}
	switch {
	case len(q.services) > maxServices:
		errs = append(errs, field.TooMany(at, len(q.services), maxServices))
	case len(q.files) == 0 && len(q.services) == 0:
		errs = append(errs, field.Required(at, "cannot be empty with options"))
	case len(q.files) > 0 && len(q.services) > 0:
		errs = append(errs, field.Invalid(at, q.files, "cannot specify a file and service"))
	case len(q.files) > 1:
		errs = append(errs, field.Invalid(at, q.files, "cannot specify more than one file"))
	case len(q.files) == 1 && q.options != options{}:
		errs = append(errs, field.Invalid(at, q.files, "cannot specify file with options"))
	}
	return errs
}
