-- cutover.lua: the data plane of Cutover inside nginx (http-lua module).
--
-- Routes and upstreams are data in a shared dictionary, one key per Section, so adding, changing or removing an App
-- never reloads nginx. Every write bumps one version. A worker compares the version at the start of each request and
-- reads what changed, so a flip is visible to the next request in every worker without any timer.
--
-- Keys of cutover_state (written with safe_set only, so nothing is ever evicted; see put):
--   s:APP    text of the Section (lbagent/nginx/sectionfile), checked before it is stored
--   f:APP    fence: the write number of the last write, kept when the Section is gone (invariant FENCE)
--   h:APP    upstreams that the agent's probes through these workers found red, one name a line
--   v, c:N   version, and the App that version N changed
--   epoch    the highest agent epoch seen, in writes or in Dir/epoch; lower ones are refused
--   boot     identity of this dictionary: it changes when nginx restarts, not when it reloads
--   cycle    count of configuration loads
--   reserve  memory that is given up for changes that must not fail when the rest is full
-- Keys of cutover_count, none of a worker that has ended:
--   PID:APP/NAME  requests in flight on one upstream in one worker; gone when there is none
--   PID:          requests in flight in one worker that found no memory for the key above
-- Keys of cutover_life, which must always find room, so Sections and requests are elsewhere:
--   lock     held by the worker that writes
--   a:PID    "version time generation" as the worker itself reports it
--   x:APP/NAME  the sessions of this upstream are being cut (for a minute)

local ffi = require "ffi"
local balancer = require "ngx.balancer"

local state = ngx.shared.cutover_state
local count = ngx.shared.cutover_count
local life = ngx.shared.cutover_life

ffi.cdef [[
struct cutover_dirent { uint64_t ino; int64_t off; unsigned short reclen; unsigned char kind; char name[256]; };
void *opendir(const char *name);
struct cutover_dirent *readdir(void *dir);
int closedir(void *dir);
int kill(int pid, int sig);
]]

local M = {
    frame = "",       -- digest of the Frame that this worker loaded
    generation = "",  -- boot.cycle of the configuration load that made this worker
    apps = {},        -- app -> parsed Section of this worker
    version = -1,     -- version that this worker has applied
}

-- Entries of the change log that are kept; a worker that is further behind reads everything again.
local LOG = 1024
-- Seconds between two reports of a worker that has nothing new to say.
local HEARTBEAT = 0.5
-- Seconds between two looks at the version when there are no requests.
local TICK = 0.02
local EPOCH = 4294967296

local function int(n) return string.format("%.0f", n) end
M.int = int

-- parse reads the text of a Section. It returns nil and a reason for anything that is not whole.
function M.parse(text)
    local body, crc = text:match("^(.*\n)end (%x+)\n$")
    if not body then return nil, "no end line" end
    if ngx.crc32_long(body) ~= tonumber(crc, 16) then return nil, "checksum differs" end
    local write = body:match("^cutover%-section 1 (%d+)\n")
    if not write then return nil, "unknown format" end
    local s = { write = tonumber(write), routes = {}, upstreams = {}, text = text }
    for line in body:gmatch("[^\n]+") do
        local kind, rest = line:match("^(%S+) (.*)$")
        if kind == "app" then
            s.app = rest
        elseif kind == "route" then
            local host, path, strip = rest:match("^(%S+) (%S+) ([01])$")
            if not host then return nil, "bad route line" end
            s.routes[#s.routes + 1] = { host = host, path = path, strip = strip == "1" }
        elseif kind == "upstream" then
            local name, ip, port, weight, mode = rest:match("^(%S+) (%S+):(%d+) (%d+) (%l+) ")
            if not name then return nil, "bad upstream line" end
            s.upstreams[#s.upstreams + 1] = {
                name = name, ip = ip, port = tonumber(port), weight = tonumber(weight), mode = mode,
            }
        elseif kind ~= "cutover-section" then
            return nil, "unknown line"
        end
    end
    if not s.app then return nil, "no app line" end
    s.empty = #s.routes == 0 and #s.upstreams == 0
    return s
end

-- Routes of this worker: hosts[host] = { max = longest path, paths = { path = { {app, strip, len}, ... } } }. More than one
-- App on one path is refused long before; if it happens all the same, the lowest name wins on every Host.
local hosts = {}

local function route_key(path) return (path:gsub("/+$", "")) end

local function measure(h)
    h.max = 0
    for path in pairs(h.paths) do
        if #path > h.max then h.max = #path end
    end
end

local function drop_routes(s)
    for _, r in ipairs(s.routes) do
        local h = hosts[r.host]
        local key = route_key(r.path)
        local list = h and h.paths[key]
        if list then
            for i = #list, 1, -1 do
                if list[i].app == s.app then table.remove(list, i) end
            end
            if #list == 0 then h.paths[key] = nil end
            if not next(h.paths) then hosts[r.host] = nil else measure(h) end
        end
    end
end

local function put_routes(s)
    for _, r in ipairs(s.routes) do
        local h = hosts[r.host]
        if not h then
            h = { max = 0, paths = {} }
            hosts[r.host] = h
        end
        local key = route_key(r.path)
        local list = h.paths[key] or {}
        list[#list + 1] = { app = s.app, strip = r.strip, len = #key }
        table.sort(list, function(a, b) return a.app < b.app end)
        h.paths[key] = list
        if #key > h.max then h.max = #key end
    end
end

-- load_section takes one Section out of the dictionary into this worker.
local function load_section(app)
    local old = M.apps[app]
    local text = state:get("s:" .. app)
    local s
    if text then
        if old and old.text == text then
            s = old
        else
            local err
            s, err = M.parse(text)
            if not s then
                ngx.log(ngx.ERR, "cutover: section ", app, " in the dictionary: ", err)
                return
            end
        end
    end
    if s ~= old then
        if old then drop_routes(old) end
        if s then put_routes(s) end
        M.apps[app] = s
    end
    if not s then return end
    local red = {}
    for name in (state:get("h:" .. app) or ""):gmatch("[^\n]+") do red[name] = true end
    s.ring = {}
    for _, u in ipairs(s.upstreams) do
        u.red = red[u.name] or false
        if u.mode == "serving" and not u.red and u.weight > 0 then
            -- A random start keeps workers from sending their first request to the same upstream.
            s.ring[#s.ring + 1] = { up = u, current = math.random(0, u.weight) }
        end
    end
end

local function report(v)
    local now = ngx.now()
    if M.reported == v and M.reported_at and now - M.reported_at < HEARTBEAT then return end
    M.reported, M.reported_at = v, now
    local ok, err = life:safe_set("a:" .. ngx.worker.pid(), int(v) .. " " .. now .. " " .. M.generation)
    if not ok then ngx.log(ngx.ERR, "cutover: cannot report the applied version: ", err) end
end

-- sync brings this worker to the version of the dictionary. It never yields, so between a sync and the count of the
-- picked upstream no other code of this worker runs: once a worker reports version V, every request that it sent by
-- an older version is already counted (NO-ORPHAN-KILL rests on that).
function M.sync()
    local v = state:get("v") or 0
    if v ~= M.version then
        local whole = M.version < 0 or v < M.version or v - M.version > LOG / 2
        if not whole then
            for n = M.version + 1, v do
                local app = state:get("c:" .. int(n))
                if not app then
                    whole = true
                    break
                end
                load_section(app)
            end
        end
        if whole then
            local seen = {}
            for _, key in ipairs(state:get_keys(0)) do
                if key:sub(1, 2) == "s:" then seen[key:sub(3)] = true end
            end
            for app in pairs(M.apps) do seen[app] = true end
            for app in pairs(seen) do load_section(app) end
        end
        M.version = v
    end
    report(v)
end

-- locked runs f while no other worker writes. A worker that dies inside leaves a lock that expires by itself.
function M.locked(f)
    for _ = 1, 2000 do
        if life:safe_add("lock", 1, 1) then
            local ok, status, body = pcall(f)
            life:delete("lock")
            if not ok then return 500, tostring(status) end
            return status, body
        end
        ngx.sleep(0.001)
    end
    return 503, "the write lock is held"
end

-- changed publishes a change of one App to the workers. The caller holds the lock, or is the master at start. Without memory
-- for its name the workers read all Apps.
function M.changed(app)
    local v = (state:get("v") or 0) + 1
    state:delete("c:" .. int(v - LOG))
    state:safe_set("c:" .. int(v), app)
    return state:safe_set("v", v)
end

-- keep_reserve takes the reserve (back), if there is room.
local function keep_reserve()
    M.spare = M.spare or ("\0"):rep(math.min(256 * 1024, state:capacity() / 16))
    state:safe_add("reserve", M.spare)
end

-- put stores a text, or leaves what is there: safe_set drops the old value before it looks for room for the new one. needed:
-- the reserve is given up for it. The caller holds the lock, or is the master at start.
function M.put(key, text, needed)
    local old = state:get(key)
    local ok, err = state:safe_set(key, text)
    if not ok and needed then
        state:delete("reserve")
        ok, err = state:safe_set(key, text)
    end
    if not ok and old then
        local back, why = state:safe_set(key, old)
        if not back then ngx.log(ngx.ERR, "cutover: ", key, " is lost: ", why) end
    end
    keep_reserve()
    return ok, err
end

-- store keeps one parsed Section. The order matters: a worker that sees the new version finds the new text.
function M.store(s)
    local ok, err = state:safe_set("f:" .. s.app, s.write)
    if not ok then return nil, err end
    if s.empty then
        state:delete("s:" .. s.app)
        state:delete("h:" .. s.app)
    else
        local old = state:get("s:" .. s.app)
        ok, err = M.put("s:" .. s.app, s.text, old and #s.text <= #old)
        if not ok then return nil, err end
        -- Red marks of upstreams that leave go with them: a name that comes back starts anew.
        local red = state:get("h:" .. s.app)
        if red then
            local kept = {}
            for _, u in ipairs(s.upstreams) do
                if ("\n" .. red):find("\n" .. u.name .. "\n", 1, true) then kept[#kept + 1] = u.name .. "\n" end
            end
            if #kept == 0 then
                state:delete("h:" .. s.app)
            else
                M.put("h:" .. s.app, table.concat(kept), true)
            end
        end
    end
    return M.changed(s.app)
end

-- published_part is what of a Section's text belongs into a file: not the write number, not what is warm. Encode sorts,
-- so two Sections with the same published part have the same text of it.
local function published_part(text)
    local lines = text:match("^[^\n]*\n(.*\n)end %x+\n$") or ""
    return (lines:gsub("upstream [^\n]*\n", function(line)
        if line:match("^upstream %S+ %S+ %d+ warm ") then return "" end
    end))
end

-- published_epoch is the count of starts of the agent, from its file; 0 before the first.
local function published_epoch(name)
    local file = io.open(name, "rb")
    if not file then return 0 end
    local n = tonumber((file:read("*a") or ""):match("^(%d+)\n$"))
    file:close()
    if not n then ngx.log(ngx.ERR, "cutover: ", name, " is not usable: older agents are refused only from the next write on") end
    return n or 0
end

-- init runs in the master at each load of the configuration (start and reload). What is published and differs from the
-- dictionary is taken in, so a restart, or an owner's reload at any moment, comes back to the truth: publishing comes
-- before the write to the dictionary, so where the two differ the file is the newer one. Files carry no write number (UNDO
-- compares them byte for byte); what comes from a file gets the lowest one of the agent that runs now: its next write is
-- higher, and an older agent's is lower (FENCE).
-- A file that cannot be read is skipped and logged: one bad file must not keep all other Apps down (FAIL-STATIC).
function M.init(options)
    M.frame, M.source = options.frame, options.source
    local boot = state:get("boot")
    if not boot then
        boot = int(ngx.time()) .. "-" .. ngx.worker.pid()
        state:safe_set("boot", boot)
    end
    local cycle = state:incr("cycle", 1)
    if not cycle then
        cycle = 1
        state:safe_set("cycle", 1)
    end
    M.generation = boot .. "." .. int(cycle)
    if not state:get("v") then state:safe_set("v", 0) end -- from now on it needs no memory
    keep_reserve()

    local epoch = math.max(published_epoch(options.epoch), state:get("epoch") or 0)
    state:safe_set("epoch", epoch)
    local published = {}
    local dir = ffi.C.opendir(options.apps)
    if dir == nil then
        ngx.log(ngx.ERR, "cutover: cannot open ", options.apps)
        return
    end
    while true do
        local entry = ffi.C.readdir(dir)
        if entry == nil then break end
        local app = ffi.string(entry.name):match("^([%w][%w._-]*)%.section$")
        if app then
            local file = io.open(options.apps .. "/" .. app .. ".section", "rb")
            local text = file and file:read("*a") or ""
            if file then file:close() end
            local s, err = M.parse(text)
            published[app] = true
            if s and s.app == app then
                local have = state:get("s:" .. app)
                if not have or published_part(have) ~= published_part(text) then
                    s.write = math.max(state:get("f:" .. app) or 0, epoch * EPOCH)
                    local ok, e = M.store(s)
                    if not ok then ngx.log(ngx.ERR, "cutover: section ", app, ": ", e) end
                end
            else
                ngx.log(ngx.ERR, "cutover: published section ", app, " is not usable: ", err or "wrong app")
            end
        end
    end
    ffi.C.closedir(dir)

    -- An App that was unpublished goes too. One that is only warm was never in a file, and stays.
    for _, key in ipairs(state:get_keys(0)) do
        local app = key:match("^s:(.+)$")
        if app and not published[app] then
            local s = M.parse(state:get(key))
            local routable = s and #s.routes > 0
            for _, u in ipairs(s and s.upstreams or {}) do routable = routable or u.mode ~= "warm" end
            -- A file that was replaced while the directory was read may not have been listed.
            local file = routable and io.open(options.apps .. "/" .. app .. ".section", "rb")
            if file then
                file:close()
            elseif routable then
                state:delete(key)
                state:delete("h:" .. app)
                M.changed(app)
            end
        end
    end
end

-- init_worker starts the look at the version that makes an idle worker report what it has applied.
function M.init_worker()
    math.randomseed(ngx.now() * 1000 + ngx.worker.pid())
    local mine = tostring(ngx.worker.pid())
    -- What is there of this pid is of an earlier process, what is of dead pids of workers that ended.
    local function clean(dict, pattern)
        for _, key in ipairs(dict:get_keys(0)) do
            local pid = key:match(pattern)
            if pid and (pid == mine or (ffi.C.kill(tonumber(pid), 0) ~= 0 and ffi.errno() == 3)) then dict:delete(key) end
        end
    end
    clean(count, "^(%d+):")
    clean(life, "^a:(%d+)$")
    local room, why = count:safe_set(mine .. ":", 0)
    if not room then ngx.log(ngx.ERR, "cutover: no memory to count requests: every upstream counts as in use: ", why) end
    M.sync()
    local ok, err = ngx.timer.every(TICK, function(premature)
        if not premature then M.sync() end
    end)
    if not ok then ngx.log(ngx.ERR, "cutover: no timer: ", err) end
end

-- match finds the route of a request: exact host before "*", then the longest path on segment boundaries. The raw path
-- is compared, as HAProxy does, so both kinds of proxy route alike.
local function match(h, path)
    if not h then return nil end
    local p = path:sub(1, h.max + 1)
    while true do
        local list = h.paths[p]
        if list then return list[1] end
        p = p:match("^(.*)/[^/]*$")
        if not p then return nil end
    end
end

local function pick(s, tried)
    local best, total = nil, 0
    for _, r in ipairs(s.ring) do
        if not (tried and tried[r.up.name]) then
            r.current = r.current + r.up.weight
            total = total + r.up.weight
            if not best or r.current > best.current then best = r end
        end
    end
    if not best then return nil end
    best.current = best.current - total
    return best.up
end

local function enter(app, up)
    local mine = ngx.worker.pid() .. ":"
    local key = mine .. app .. "/" .. up.name
    if count:incr(key, 1) or count:safe_add(key, 1) then return key end
    count:incr(mine, 1)
    return mine
end

local function leave(ctx)
    local key = ctx.cutover_key
    if not key then return end
    ctx.cutover_key = nil
    local n = count:incr(key, -1)
    -- Only this worker writes the key, and nothing of it runs in between.
    if n and n <= 0 and key:sub(-1) ~= ":" then count:delete(key) end
end

-- route runs in the access phase: it finds the App, picks the upstream and counts the request.
function M.route()
    M.sync()
    local var, ctx = ngx.var, ngx.ctx
    local uri = var.request_uri
    local path = uri:match("^[^?]*")
    local r = match(hosts[var.host], path) or match(hosts["*"], path)
    if not r then return ngx.exit(404) end
    local s = M.apps[r.app]
    local up = s and pick(s)
    if not up then return ngx.exit(503) end
    if r.strip then
        uri = uri:sub(r.len + 1)
        if uri:sub(1, 1) ~= "/" then uri = "/" .. uri end
    end
    var.cutover_uri = uri
    var.cutover_host = var.http_host or var.host
    ctx.cutover_app, ctx.cutover_up = r.app, up
    ctx.cutover_key = enter(r.app, up)
end

-- balance runs for each try. A second try (only after a failed connect, or for requests that may be repeated: nginx
-- decides by proxy_next_upstream) goes to another upstream that is serving now.
function M.balance()
    local ctx = ngx.ctx
    local up = ctx.cutover_up
    if ctx.cutover_tried then
        ctx.cutover_tried[up.name] = true
        -- A session that was cut ends; without this nginx would repeat a GET elsewhere.
        if life:get("x:" .. ctx.cutover_app .. "/" .. up.name) then return ngx.exit(502) end
        M.sync()
        local s = M.apps[ctx.cutover_app]
        local other = s and pick(s, ctx.cutover_tried)
        if other then
            leave(ctx)
            up = other
            ctx.cutover_up = up
            ctx.cutover_key = enter(ctx.cutover_app, up)
        end
    else
        ctx.cutover_tried = {}
        local s = M.apps[ctx.cutover_app]
        if s and #s.ring > 1 then balancer.set_more_tries(1) end
    end
    local ok, err = balancer.set_current_peer(up.ip, up.port)
    if not ok then
        ngx.log(ngx.ERR, "cutover: peer ", up.ip, ":", up.port, ": ", err)
        return ngx.exit(502)
    end
end

function M.log() leave(ngx.ctx) end

return M
