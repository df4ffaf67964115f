-- Draw P groups of K trajectories of one prompt each.
--
-- ARGV: seed, P, K, recent share, prioritised share, samples per insert, slack, max staleness versions.
-- Reply: {1, id, payload, id, payload, …} (P·K pairs, group after group; a payload is nil when it is
--        gone), or {0, flow…} when the learner has to wait.

math.randomseed(tonumber(ARGV[1]))
local groups, group_size = tonumber(ARGV[2]), tonumber(ARGV[3])
local recent_share, prioritised_share = tonumber(ARGV[4]), tonumber(ARGV[5])
local samples_per_insert, slack = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_staleness = tonumber(ARGV[8])

local flow = read_flow()
if data_are_missing(flow, slack, max_staleness, groups * group_size)
    or flow.drawn - flow.received * samples_per_insert > slack then
  return { 0, unpack(flow_reply(flow)) }
end

-- `wanted` different numbers out of 0 … n - 1, in random order (Fisher-Yates on a sparse array).
local function distinct(n, wanted)
  local moved, picked = {}, {}
  for i = 0, wanted - 1 do
    local j = math.random(i, n - 1)
    picked[i + 1] = moved[j] or j
    moved[j] = moved[i] or i
  end
  return picked
end

local function uniform(prompt, wanted)
  local key = age_of(prompt)
  local n = redis.call('ZCARD', key)
  local ranks = {}
  if n >= wanted then
    ranks = distinct(n, wanted)
  else
    for i = 1, wanted do ranks[i] = math.random(0, n - 1) end
  end
  local ids = {}
  for i, rank in ipairs(ranks) do ids[i] = redis.call('ZRANGE', key, rank, rank)[1] end
  return ids
end

-- The newest ones; a second group of a prompt in one draw goes on where the first ended.
local already_taken = {}
local function recent(prompt, wanted)
  if wanted == 0 then return {} end
  local key = age_of(prompt)
  local fresh = redis.call('ZCOUNT', key, (flow.learner_version - max_staleness) * VERSION_STEP, '+inf')
  if fresh == 0 then return uniform(prompt, wanted) end
  local skip = already_taken[prompt] or 0
  already_taken[prompt] = skip + wanted
  local newest = redis.call('ZREVRANGE', key, 0, math.min(fresh, skip + wanted) - 1)
  local ids = {}
  for i = 1, wanted do
    ids[i] = newest[(skip + i - 1) % fresh + 1]
  end
  return ids
end

local function prioritised(prompt, wanted)
  if wanted == 0 then return {} end
  local key = race_of(prompt)
  local clock = read_clock(prompt)
  local ids = {}
  while #ids < wanted do
    local id, time = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    time = tonumber(time)
    if time > RACE_TIME_LIMIT then
      -- Nobody fires before the limit: start afresh there, on the scale of the best one present.
      clock = rebase(prompt)
    else
      clock.time = time
      redis.call('ZADD', key, firing(log_reward_of(id), clock), id)
      ids[#ids + 1] = id
    end
  end
  write_clock(prompt, clock)
  return ids
end

local available = redis.call('ZCARD', PROMPTS)
local reply = { 1 }
local ranks = {}
for group = 1, groups do
  -- Different prompts in every round of as many groups as there are prompts.
  if #ranks == 0 then ranks = distinct(available, math.min(available, groups - group + 1)) end
  local rank = table.remove(ranks)
  local prompt = redis.call('ZRANGE', PROMPTS, rank, rank)[1]
  -- Each trajectory in a mode of its own: a group of the best alone is often one trajectory many times
  -- over, whose residuals agree with each other whatever the policy is.
  local from_recent, from_best = 0, 0
  for _ = 1, group_size do
    local u = math.random()
    if u < recent_share then
      from_recent = from_recent + 1
    elseif u < recent_share + prioritised_share then
      from_best = from_best + 1
    end
  end
  local drawn = {
    recent(prompt, from_recent),
    prioritised(prompt, from_best),
    uniform(prompt, group_size - from_recent - from_best),
  }
  for _, ids in ipairs(drawn) do
    for i, payload in ipairs(values_of(PAYLOADS, ids)) do
      reply[#reply + 1] = ids[i]
      reply[#reply + 1] = payload
    end
  end
end
count('drawn', groups * group_size)
return reply
