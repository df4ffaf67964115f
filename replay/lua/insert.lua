-- Store trajectories, all or none.
--
-- ARGV: seed, capacity bytes, capacity per prompt, samples per insert, slack, max staleness versions,
--       near-duplicate tolerance, then per trajectory: id, version (or 'arrival'), reward version,
--       log R, producer, token bytes (int32 little-endian), payload.
-- Reply: {1, inserted, merged, dropped, evicted}, or {0, flow…} when the actor has to wait, or
--        {-1, producer, why} when a producer is in quarantine.

local FIXED, EACH = 7, 7
math.randomseed(tonumber(ARGV[1]))
local capacity_bytes = tonumber(ARGV[2])
local capacity_per_prompt = tonumber(ARGV[3])
local samples_per_insert = tonumber(ARGV[4])
local slack = tonumber(ARGV[5])
local max_staleness = tonumber(ARGV[6])
local tolerance = tonumber(ARGV[7])

for first = FIXED + 1, #ARGV, EACH do
  local why = redis.call('HGET', QUARANTINED, ARGV[first + 4])
  if why then return { -1, ARGV[first + 4], why } end
end

local flow = read_flow()
if not data_are_missing(flow, slack, max_staleness, slack)
    and flow.received - flow.drawn / samples_per_insert > slack then
  return { 0, unpack(flow_reply(flow)) }
end

local inserted, merged, dropped, evicted = 0, 0, 0, 0

-- Token sequences of a prompt as arrays of 4-byte strings, unpacked once a call.
local unpacked = {}

local function split(token_bytes)
  local tokens = {}
  for i = 1, #token_bytes / 4 do tokens[i] = string.sub(token_bytes, 4 * i - 3, 4 * i) end
  return tokens
end

local function sequences_of(prompt)
  if not unpacked[prompt] then
    local sequences = {}
    for _, id in ipairs(redis.call('ZRANGE', age_of(prompt), 0, -1)) do
      local _, _, _, after = struct.unpack(META_FORMAT, redis.call('HGET', META, id))
      sequences[id] = split(string.sub(redis.call('HGET', META, id), after))
    end
    unpacked[prompt] = sequences
  end
  return unpacked[prompt]
end

local function forget(id)
  local sequences = unpacked[prompt_of(id)]
  if sequences then sequences[id] = nil end
  remove(id)
  evicted = evicted + 1
end

local function evict_until(fits)
  while not fits() do
    local oldest = redis.call('ZRANGE', AGE, 0, 0)[1]
    if not oldest then return end
    forget(oldest)
  end
end

-- Levenshtein distance below `limit`? Bounded first by lengths and by tokens in common, in O(n),
-- then computed within `limit` of the diagonal: all cells outside are at least that, and what stands
-- in `row` there from earlier rows is too.
local function is_near(a, b, limit)
  local n, m = #a, #b
  if math.abs(n - m) >= limit then return false end
  local left = {}
  for i = 1, n do left[a[i]] = (left[a[i]] or 0) + 1 end
  local common = 0
  for j = 1, m do
    local have = left[b[j]]
    if have and have > 0 then
      common = common + 1
      left[b[j]] = have - 1
    end
  end
  if math.max(n, m) - common >= limit then return false end
  local row = {}
  for j = 0, m do row[j] = j end
  local band = math.ceil(limit)
  for i = 1, n do
    local from = math.max(1, i - band)
    local diagonal, best = row[from - 1], limit
    if from == 1 then
      row[0] = i
      best = i
    end
    for j = from, math.min(m, i + band) do
      local cost = diagonal
      if a[i] ~= b[j] then cost = math.min(diagonal, row[j], row[j - 1]) + 1 end
      diagonal = row[j]
      row[j] = cost
      if cost < best then best = cost end
    end
    if best >= limit then return false end
  end
  return row[m] < limit
end

-- False when a stored near duplicate is at least as good; else the worse ones make room.
local function beats_near_duplicates(prompt, token_bytes, log_reward)
  local tokens = split(token_bytes)
  local worse = {}
  for id, stored in pairs(sequences_of(prompt)) do
    if is_near(tokens, stored, tolerance * (#tokens + #stored)) then
      if log_reward_of(id) >= log_reward then return false end
      worse[#worse + 1] = id
    end
  end
  for _, id in ipairs(worse) do forget(id) end
  return true
end

local function store(id, version, reward_version, log_reward, producer, token_bytes, payload)
  local prompt = prompt_of(id)
  redis.call('HINCRBY', COUNTERS, 'arrivals', 1)
  local age = version * VERSION_STEP + counter('arrivals') % VERSION_STEP
  local is_new = redis.call('HEXISTS', PAYLOADS, id) == 0
  count('held_bytes', #payload + (is_new and INDEX_BYTES_PER_TRAJECTORY or -redis.call('HSTRLEN', PAYLOADS, id)))
  redis.call('HSET', PAYLOADS, id, payload)
  local kept_tokens = tolerance > 0 and token_bytes or ''
  redis.call('HSET', META, id, struct.pack(META_FORMAT, log_reward, reward_version, #producer, producer)
    .. kept_tokens)
  redis.call('ZADD', AGE, age, id)
  redis.call('ZADD', age_of(prompt), age, id)
  redis.call('ZADD', PROMPTS, 0, prompt)
  enter_race(prompt, id, log_reward)
  if unpacked[prompt] then unpacked[prompt][id] = split(token_bytes) end
end

-- Evicting comes first: it is possible when Redis is out of memory, and makes the rest possible.
evict_until(function() return counter('held_bytes') <= capacity_bytes end)

for first = FIXED + 1, #ARGV, EACH do
  local id, version, reward_version, log_reward, producer, token_bytes, payload =
    unpack(ARGV, first, first + EACH - 1)
  local prompt = prompt_of(id)
  version = version == 'arrival' and flow.learner_version or tonumber(version)
  reward_version, log_reward = tonumber(reward_version), tonumber(log_reward)
  local meta = redis.call('HGET', META, id)
  if meta then
    local _, stored_reward_version = struct.unpack('<dI4', meta)
    if reward_version > stored_reward_version
        or (reward_version == stored_reward_version and version >= version_of(id)) then
      store(id, version, reward_version, log_reward, producer, token_bytes, payload)
    end
    merged = merged + 1
  elseif tolerance > 0 and not beats_near_duplicates(prompt, token_bytes, log_reward) then
    dropped = dropped + 1
  else
    while redis.call('ZCARD', age_of(prompt)) >= capacity_per_prompt do
      forget(redis.call('ZRANGE', age_of(prompt), 0, 0)[1])
    end
    local limit = capacity_bytes - #payload - INDEX_BYTES_PER_TRAJECTORY
    evict_until(function() return counter('held_bytes') <= limit end)
    store(id, version, reward_version, log_reward, producer, token_bytes, payload)
    inserted = inserted + 1
  end
end

count('received', inserted + merged + dropped)
count('inserted', inserted)
count('merged', merged)
count('dropped', dropped)
count('evicted', evicted)
return { 1, inserted, merged, dropped, evicted }
