-- control.lua: the private endpoint of the agent, on a unix socket in a directory that only the agent's user may enter.
-- Everything is lines of text, because Debian's Lua module brings no JSON decoder.

local M = require "cutover"
local state = ngx.shared.cutover_state
local count = ngx.shared.cutover_count
local life = ngx.shared.cutover_life
local EPOCH = 4294967296

local C = {}

local function answer(status, text)
    ngx.status = status
    ngx.header["Content-Type"] = "text/plain"
    ngx.print(text, "\n")
    return ngx.exit(status)
end

local function body()
    ngx.req.read_body()
    return ngx.req.get_body_data() or ""
end

local function worker_line()
    return table.concat({
        "worker", ngx.worker.pid(), ngx.worker.exiting() and 1 or 0, M.generation, M.frame, ngx.var.nginx_version,
    }, " ")
end

-- whoami names the worker that answers.
function C.whoami()
    M.sync()
    return answer(200, worker_line())
end

-- section writes one Section. It refuses a number that the Section has passed and an epoch below the highest (FENCE).
function C.section()
    local s, why = M.parse(body())
    if not s then return answer(400, why) end
    local status, text = M.locked(function()
        local epoch = math.floor(s.write / EPOCH)
        local highest = state:get("epoch") or 0
        if epoch < highest then return 409, "epoch " .. M.int(highest) end
        local fence = state:get("f:" .. s.app) or 0
        if s.write <= fence then return 409, "write " .. M.int(fence) end
        local ok, err = state:safe_set("epoch", epoch)
        if ok then ok, err = M.store(s) end
        if not ok then return 507, err end
        return 200, "version " .. M.int(state:get("v"))
    end)
    M.sync()
    return answer(status, text)
end

-- health replaces the set of red upstreams of one App. First line: epoch and App; then one name a line.
function C.health()
    local epoch, app, names = body():match("^(%d+) (%S+)\n(.*)$")
    if not epoch then return answer(400, "bad body") end
    local status, text = M.locked(function()
        local highest = state:get("epoch") or 0
        if tonumber(epoch) < highest then return 409, "epoch " .. M.int(highest) end
        local ok, err = true, nil
        if names == "" then
            state:delete("h:" .. app)
        elseif state:get("s:" .. app) then
            ok, err = M.put("h:" .. app, names, true)
        end
        if ok then ok, err = M.changed(app) end
        if not ok then return 507, err end
        return 200, "version " .. M.int(state:get("v"))
    end)
    M.sync()
    return answer(status, text)
end

-- cut marks one upstream, "EPOCH APP/NAME": its sessions end now and are not repeated elsewhere.
function C.cut()
    local epoch, key = body():match("^(%d+) (%S+)\n$")
    if not epoch then return answer(400, "bad body") end
    local highest = state:get("epoch") or 0
    if tonumber(epoch) < highest then return answer(409, "epoch " .. M.int(highest)) end
    local ok, err = life:safe_set("x:" .. key, true, 60)
    if not ok then return answer(507, err) end
    return answer(200, "version " .. M.int(state:get("v") or 0))
end

-- read reports what this worker routes by. Body: "pids P P ..." (processes whose requests in flight are counted) and one
-- "app NAME" line for each App that is asked; none means all.
function C.read()
    local ask = body()
    M.sync()
    ngx.update_time()
    local out = { worker_line(), "version " .. M.int(M.version) }
    -- Requests that a worker could not count by upstream are with any of them; so is an unknown number (NO-ORPHAN-KILL).
    local pids, uncounted = {}, 0
    for pid in (ask:match("pids ([%d ]*)\n") or ""):gmatch("%d+") do
        pids[#pids + 1] = pid
        uncounted = uncounted + math.max(0, count:get(pid .. ":") or 1)
        local v, at, generation = (life:get("a:" .. pid) or ""):match("^(%d+) (%S+) (%S+)$")
        if v then
            local age = math.max(0, math.floor((ngx.now() - tonumber(at)) * 1000))
            out[#out + 1] = table.concat({ "applied", pid, v, age, generation }, " ")
        end
    end
    local function one(app, s)
        out[#out + 1] = "section " .. app .. " " .. #s.text
        out[#out + 1] = s.text .. "."
        for _, u in ipairs(s.upstreams) do
            local n = uncounted
            for _, pid in ipairs(pids) do n = n + math.max(0, count:get(pid .. ":" .. app .. "/" .. u.name) or 0) end
            out[#out + 1] = "row " .. u.name .. " " .. n .. " " .. (u.red and "red" or "-")
        end
    end
    local asked = false
    for app in ask:gmatch("app (%S+)\n") do
        asked = true
        local s = M.apps[app]
        if s then one(app, s) end
    end
    if not asked then
        for app, s in pairs(M.apps) do one(app, s) end
    end
    out[#out + 1] = "done"
    return answer(200, table.concat(out, "\n"))
end

-- connect makes a plain TCP connect from this worker: the check of upstreams whose health is TCP or none.
function C.connect()
    local ip, port = (ngx.var.http_x_cutover_target or ""):match("^(%S+):(%d+)$")
    if not ip then return answer(400, "bad target") end
    ngx.header["X-Cutover-Generation"] = M.generation
    ngx.header["X-Cutover-Worker"] = ngx.worker.pid()
    local sock = ngx.socket.tcp()
    if M.source ~= "" then
        local ok, err = sock:bind(M.source)
        if not ok then return answer(502, err) end
    end
    sock:settimeout(60000)
    local ok, err = sock:connect(ip, tonumber(port))
    if not ok then
        -- 502 is nginx's own word for an upstream that cannot be reached.
        return answer(502, err)
    end
    sock:close()
    ngx.header["X-Cutover-Connected"] = 1
    return answer(200, "connected")
end

return C
