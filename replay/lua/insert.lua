-- Store trajectories, all or none.
--
-- ARGV: seed, capacity bytes, capacity per prompt, samples per insert, slack, max staleness versions,
--       then per trajectory: id, version (or 'arrival'), reward version, log R, producer, near
--       duplicates, payload. Near duplicates are the ids, end to end, that the caller has found near.
-- Reply: {1, inserted, merged, dropped, evicted}, or {0, flow…} when the actor has to wait, or
--        {-1, producer, why} when a producer is in quarantine.
--
-- Decides first and writes then, so that what is written to one key is one command.

local FIXED, EACH, ID_BYTES = 6, 7, 48
math.randomseed(tonumber(ARGV[1]))
local capacity_bytes = tonumber(ARGV[2])
local capacity_per_prompt = tonumber(ARGV[3])
local samples_per_insert = tonumber(ARGV[4])
local slack = tonumber(ARGV[5])
local max_staleness = tonumber(ARGV[6])

local offered, producers = {}, {}
for first = FIXED + 1, #ARGV, EACH do
  offered[#offered + 1] = ARGV[first]
  local producer = ARGV[first + 4]
  if not producers[producer] then
    producers[producer] = true
    local why = redis.call('HGET', QUARANTINED, producer)
    if why then return { -1, producer, why } end
  end
end

local flow = read_flow()
if not data_are_missing(flow, slack, max_staleness, slack)
    and flow.received - flow.drawn / samples_per_insert > slack then
  return { 0, unpack(flow_reply(flow)) }
end

-- ------------------------------------------------------------------------------------- decide

local COUNTED = { 'received', 'inserted', 'merged', 'dropped', 'evicted', 'held_bytes', 'arrivals' }
local counts = {}
for i, value in ipairs(values_of(COUNTERS, COUNTED)) do counts[COUNTED[i]] = tonumber(value or 0) end
local before = { inserted = counts.inserted, merged = counts.merged, dropped = counts.dropped,
                 evicted = counts.evicted }
local function add(name, by) counts[name] = counts[name] + by end

local metas = {}      -- id -> what the buffer holds under it, of those offered
for i, meta in ipairs(values_of(META, offered)) do metas[offered[i]] = meta end
local entries = {}    -- what is to be written, in order of arrival
local entry_of = {}   -- id -> its entry
local gone = {}       -- id -> true: held before, and to be removed
local victims = {}    -- those ids
local sizes = {}      -- prompt -> trajectories, those to be written included

local function size_of(prompt)
  if not sizes[prompt] then sizes[prompt] = redis.call('ZCARD', age_of(prompt)) end
  return sizes[prompt]
end

-- Whatever is the oldest at this point: of those held before the next in order, or one of this call.
local function oldest_of(key, prompt)
  local next_id, id, age = oldest_first(key)
  id, age = next_id()
  return function()
    while id and (gone[id] or entry_of[id]) do id, age = next_id() end
    local oldest, oldest_age = id, age
    for _, entry in ipairs(entries) do
      if entry_of[entry.id] == entry and (not prompt or entry.prompt == prompt)
          and (not oldest or entry.age < oldest_age) then
        oldest, oldest_age = entry.id, entry.age
      end
    end
    return oldest
  end
end

local oldest_anywhere, oldest_in = nil, {}

local function forget(id)
  local entry, prompt = entry_of[id], prompt_of(id)
  local size = size_of(prompt)
  if entry then
    entry_of[id] = nil
    add('held_bytes', -#entry.payload - INDEX_BYTES_PER_TRAJECTORY)
  else
    add('held_bytes', -charge_of(id))
  end
  if not gone[id] and (not entry or entry.refreshes) then
    gone[id] = true
    victims[#victims + 1] = id
  end
  sizes[prompt] = size - 1
  add('evicted', 1)
end

local function evict_down_to(bytes)
  while counts.held_bytes > bytes do
    oldest_anywhere = oldest_anywhere or oldest_of(AGE)
    local oldest = oldest_anywhere()
    if not oldest then return end
    forget(oldest)
  end
end

-- log R of an id at this point; nil: it is not held.
local function held_log_reward(id)
  if entry_of[id] then return entry_of[id].log_reward end
  if gone[id] then return nil end
  local meta = redis.call('HGET', META, id)
  return meta and (struct.unpack('<d', meta)) or nil
end

-- False when a near duplicate is at least as good; else the worse ones make room.
local function beats(near, log_reward)
  local worse = {}
  for at = 1, #near, ID_BYTES do
    local other = string.sub(near, at, at + ID_BYTES - 1)
    local held = held_log_reward(other)
    if held and held >= log_reward then return false end
    if held then worse[#worse + 1] = other end
  end
  for _, id in ipairs(worse) do forget(id) end
  return true
end

local function write_later(id, prompt, version, reward_version, log_reward, producer, payload, refreshes)
  add('arrivals', 1)
  local entry = {
    id = id, prompt = prompt, version = version, reward_version = reward_version,
    log_reward = log_reward, payload = payload, refreshes = refreshes,
    age = version * VERSION_STEP + counts.arrivals % VERSION_STEP,
    meta = struct.pack(META_FORMAT, log_reward, reward_version, #producer, producer),
  }
  entries[#entries + 1] = entry
  entry_of[id] = entry
end

evict_down_to(capacity_bytes)
for first = FIXED + 1, #ARGV, EACH do
  local id, version, reward_version, log_reward, producer, near, payload =
    unpack(ARGV, first, first + EACH - 1)
  local prompt = prompt_of(id)
  version = version == 'arrival' and flow.learner_version or tonumber(version)
  reward_version, log_reward = tonumber(reward_version), tonumber(log_reward)
  local entry = entry_of[id]
  local meta = not entry and not gone[id] and metas[id]
  if entry or meta then
    local known_reward_version, known_version
    if entry then
      known_reward_version, known_version = entry.reward_version, entry.version
    else
      local _, stored = struct.unpack('<dI4', meta)
      known_reward_version, known_version = stored, version_of(id)
    end
    if reward_version > known_reward_version
        or (reward_version == known_reward_version and version >= known_version) then
      local held = entry and #entry.payload or redis.call('HSTRLEN', PAYLOADS, id)
      add('held_bytes', #payload - held)
      write_later(id, prompt, version, reward_version, log_reward, producer, payload,
        meta and true or entry.refreshes)
    end
    add('merged', 1)
  elseif not beats(near, log_reward) then
    add('dropped', 1)
  else
    while size_of(prompt) >= capacity_per_prompt do
      oldest_in[prompt] = oldest_in[prompt] or oldest_of(age_of(prompt), prompt)
      forget(oldest_in[prompt]())
    end
    evict_down_to(capacity_bytes - #payload - INDEX_BYTES_PER_TRAJECTORY)
    sizes[prompt] = size_of(prompt) + 1
    add('held_bytes', #payload + INDEX_BYTES_PER_TRAJECTORY)
    write_later(id, prompt, version, reward_version, log_reward, producer, payload, false)
    add('inserted', 1)
  end
end

-- -------------------------------------------------------------------------------------- write

-- Removing comes first: it is possible when Redis is out of memory, and makes the rest possible.
remove_all(victims)

local payloads, kept_metas, ages, of_prompt = {}, {}, {}, {}
for _, entry in ipairs(entries) do
  if entry_of[entry.id] == entry then
    local at = #payloads
    payloads[at + 1], payloads[at + 2] = entry.id, entry.payload
    kept_metas[at + 1], kept_metas[at + 2] = entry.id, entry.meta
    ages[at + 1], ages[at + 2] = entry.age, entry.id
    of_prompt[entry.prompt] = of_prompt[entry.prompt] or {}
    table.insert(of_prompt[entry.prompt], entry)
  end
end
call('HSET', PAYLOADS, payloads)
call('HSET', META, kept_metas)
call('ZADD', AGE, ages)
for prompt, of_this in pairs(of_prompt) do
  local clock, best = read_clock(prompt), -math.huge
  local here = {}
  for _, entry in ipairs(of_this) do
    here[#here + 1], here[#here + 2] = entry.age, entry.id
    best = math.max(best, entry.log_reward)
  end
  call('ZADD', age_of(prompt), here)
  redis.call('ZADD', PROMPTS, 0, prompt)
  if clock and best <= clock.reference + REBASE_NATS then
    local armed = {}
    for _, entry in ipairs(of_this) do
      armed[#armed + 1], armed[#armed + 2] = firing(entry.log_reward, clock), entry.id
    end
    call('ZADD', race_of(prompt), armed)
  else
    rebase(prompt)
  end
end

local inserted, merged = counts.inserted - before.inserted, counts.merged - before.merged
local dropped, evicted = counts.dropped - before.dropped, counts.evicted - before.evicted
add('received', inserted + merged + dropped)
local counted = {}
for i, name in ipairs(COUNTED) do counted[2 * i - 1], counted[2 * i] = name, counts[name] end
call('HSET', COUNTERS, counted)
return { 1, inserted, merged, dropped, evicted }
