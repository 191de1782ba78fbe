package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/cutover/cutover/orchestrator/api/wire"
	"github.com/cutover/cutover/orchestrator/deploy"
)

// Submit starts a Deploy of the Spec in source.
func (c *Client) Submit(ctx context.Context, source []byte, change Change) (deploy.View, error) {
	var v deploy.View
	err := c.post(ctx, "/v1/deploys", change, wire.SubmitBody{Source: string(source), Reason: change.Reason}, &v)
	return v, err
}

// Validate asks whether a Spec would be accepted; nil means yes.
func (c *Client) Validate(ctx context.Context, source []byte) error {
	var v wire.Validated
	return c.post(ctx, "/v1/validate", Change{}, wire.ValidateBody{Source: string(source)}, &v)
}

// Scale starts a Deploy that changes the number of instances.
func (c *Client) Scale(ctx context.Context, app string, instances int, change Change) (deploy.View, error) {
	return c.changeApp(ctx, app, "scale", change, wire.ScaleBody{Instances: instances, Reason: change.Reason})
}

// Stop starts a Deploy that removes an App's routes and tasks.
func (c *Client) Stop(ctx context.Context, app string, change Change) (deploy.View, error) {
	return c.changeApp(ctx, app, "stop", change, wire.ReasonBody{Reason: change.Reason})
}

// Rollback goes to an earlier Spec; 0 is the one committed before the current one. It ends an open Deploy.
func (c *Client) Rollback(ctx context.Context, app string, to uint64, change Change) (deploy.View, error) {
	return c.changeApp(ctx, app, "rollback", change, wire.RollbackBody{To: to, Reason: change.Reason})
}

// AbortApp aborts the open Deploy of an App.
func (c *Client) AbortApp(ctx context.Context, app string, change Change) (deploy.View, error) {
	return c.changeApp(ctx, app, "abort", change, wire.ReasonBody{Reason: change.Reason})
}

func (c *Client) changeApp(ctx context.Context, app, verb string, change Change, body any) (deploy.View, error) {
	var v deploy.View
	err := c.post(ctx, "/v1/apps/"+url.PathEscape(app)+"/"+verb, change, body, &v)
	return v, err
}

// Abort aborts a Deploy, named by its id or by the App whose open Deploy it is.
func (c *Client) Abort(ctx context.Context, ref string, change Change) (deploy.View, error) {
	var v deploy.View
	err := c.post(ctx, "/v1/deploys/"+url.PathEscape(ref)+"/abort", change, wire.ReasonBody{Reason: change.Reason}, &v)
	return v, err
}

// Deploy shows a Deploy.
func (c *Client) Deploy(ctx context.Context, id string) (deploy.View, error) {
	var v deploy.View
	err := c.get(ctx, "/v1/deploys/"+url.PathEscape(id), nil, &v)
	return v, err
}

// Deploys lists the newest Deploys, of one App or of all ("").
func (c *Client) Deploys(ctx context.Context, app string, limit int) ([]deploy.View, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if app != "" {
		query.Set("app", app)
	}
	var list wire.DeployList
	err := c.get(ctx, "/v1/deploys", query, &list)
	return list.Deploys, err
}

// Apps lists Apps.
func (c *Client) Apps(ctx context.Context) ([]deploy.AppView, error) {
	var list wire.AppList
	err := c.get(ctx, "/v1/apps", nil, &list)
	return list.Apps, err
}

// App shows an App.
func (c *Client) App(ctx context.Context, name string) (deploy.AppView, error) {
	var a deploy.AppView
	err := c.get(ctx, "/v1/apps/"+url.PathEscape(name), nil, &a)
	return a, err
}

// Tasks lists tasks, of one App or of all ("").
func (c *Client) Tasks(ctx context.Context, app string) ([]deploy.TaskView, error) {
	query := url.Values{}
	if app != "" {
		query.Set("app", app)
	}
	var list wire.TaskList
	err := c.get(ctx, "/v1/tasks", query, &list)
	return list.Tasks, err
}

// Logs reads up to limit bytes of a task's "stdout" or "stderr" from offset; offset -1 means the last limit bytes.
func (c *Client) Logs(ctx context.Context, task, file string, offset int64, limit int) (wire.LogChunk, error) {
	query := url.Values{"file": {file}, "offset": {strconv.FormatInt(offset, 10)}, "limit": {strconv.Itoa(limit)}}
	var chunk wire.LogChunk
	err := c.get(ctx, "/v1/tasks/"+url.PathEscape(task)+"/logs", query, &chunk)
	return chunk, err
}

// Hosts lists load-balancer Hosts.
func (c *Client) Hosts(ctx context.Context) ([]wire.Host, error) {
	list, err := c.HostList(ctx)
	return list.Hosts, err
}

// HostList lists the Hosts, and the catalogs that announce them.
func (c *Client) HostList(ctx context.Context) (wire.HostList, error) {
	var list wire.HostList
	err := c.get(ctx, "/v1/hosts", nil, &list)
	return list, err
}

// ShowHost reads the committed and the running state of a Host, now.
func (c *Client) ShowHost(ctx context.Context, name string) (wire.HostShow, error) {
	var show wire.HostShow
	err := c.get(ctx, "/v1/hosts/"+url.PathEscape(name), nil, &show)
	return show, err
}

// HostDrift looks, now, for every difference on a Host between what is committed, on disk and running.
func (c *Client) HostDrift(ctx context.Context, name string) (wire.HostDrift, error) {
	var drift wire.HostDrift
	err := c.get(ctx, "/v1/hosts/"+url.PathEscape(name)+"/drift", nil, &drift)
	return drift, err
}

// Admit admits a Host; group and agentURL are for one that no source announces.
func (c *Client) Admit(ctx context.Context, host, group, agentURL string, change Change) (wire.Host, error) {
	return c.changeHost(ctx, host, "admit", change, wire.AdmitBody{Group: group, AgentURL: agentURL, Reason: change.Reason})
}

// Readmit brings back a Host that is excluded or drained.
func (c *Client) Readmit(ctx context.Context, host string, change Change) (wire.Host, error) {
	return c.changeHost(ctx, host, "readmit", change, wire.HostBody{Reason: change.Reason})
}

// DrainHost takes a Host out of traffic.
func (c *Client) DrainHost(ctx context.Context, host string, sure bool, change Change) (wire.Host, error) {
	return c.changeHost(ctx, host, "drain", change, wire.HostProofBody{Reason: change.Reason, Sure: sure})
}

// Exclude takes a Host out of its Group's View. sure is the asker's word that it gets no traffic.
func (c *Client) Exclude(ctx context.Context, host string, sure bool, change Change) (wire.Host, error) {
	return c.changeHost(ctx, host, "exclude", change, wire.HostProofBody{Reason: change.Reason, Sure: sure})
}

// RemoveHost takes a Host out for good. sure is the asker's word that it gets no traffic.
func (c *Client) RemoveHost(ctx context.Context, host string, sure bool, change Change) (wire.Host, error) {
	return c.changeHost(ctx, host, "remove", change, wire.HostProofBody{Reason: change.Reason, Sure: sure})
}

func (c *Client) changeHost(ctx context.Context, host, verb string, change Change, body any) (wire.Host, error) {
	var h wire.Host
	err := c.post(ctx, "/v1/hosts/"+url.PathEscape(host)+"/"+verb, change, body, &h)
	return h, err
}

// Resolve lets a Host, or those that a Deploy or an App waits for, try again at once.
func (c *Client) Resolve(ctx context.Context, ref string, change Change) (wire.Resolution, error) {
	var r wire.Resolution
	err := c.post(ctx, "/v1/resolve/"+url.PathEscape(ref), change, wire.ReasonBody{Reason: change.Reason}, &r)
	return r, err
}

// HostChanges lists changes of membership, newest first.
func (c *Client) HostChanges(ctx context.Context, limit int) ([]wire.HostChange, error) {
	var list wire.HostHistory
	err := c.get(ctx, "/v1/host-changes", url.Values{"limit": {strconv.Itoa(limit)}}, &list)
	return list.Changes, err
}

// Version says what answers.
func (c *Client) Version(ctx context.Context) (wire.Version, error) {
	var v wire.Version
	err := c.get(ctx, "/v1/version", nil, &v)
	return v, err
}
