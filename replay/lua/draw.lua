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

local function uniform(prompt)
  local key = age_of(prompt)
  local n = redis.call('ZCARD', key)
  local ranks = {}
  if n >= group_size then
    ranks = distinct(n, group_size)
  else
    for i = 1, group_size do ranks[i] = math.random(0, n - 1) end
  end
  local ids = {}
  for i, rank in ipairs(ranks) do ids[i] = redis.call('ZRANGE', key, rank, rank)[1] end
  return ids
end

-- The newest ones; a second group of a prompt in one draw goes on where the first ended.
local already_taken = {}
local function recent(prompt)
  local key = age_of(prompt)
  local fresh = redis.call('ZCOUNT', key, (flow.learner_version - max_staleness) * VERSION_STEP, '+inf')
  if fresh == 0 then return uniform(prompt) end
  local skip = already_taken[prompt] or 0
  already_taken[prompt] = skip + group_size
  local newest = redis.call('ZREVRANGE', key, 0, math.min(fresh, skip + group_size) - 1)
  local ids = {}
  for i = 1, group_size do
    ids[i] = newest[(skip + i - 1) % fresh + 1]
  end
  return ids
end

local function prioritised(prompt)
  local key = race_of(prompt)
  local clock = read_clock(prompt)
  local ids = {}
  while #ids < group_size do
    local id, time = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    time = tonumber(time)
    if time > RACE_TIME_LIMIT then
      -- Nobody fires before the limit: start afresh there, on the scale of the best one present.
      clock = rebase(prompt)
    else
      clock.time = time
      arm(prompt, id, log_reward_of(id), clock)
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
  local u = math.random()
  local ids
  if u < recent_share then
    ids = recent(prompt)
  elseif u < recent_share + prioritised_share then
    ids = prioritised(prompt)
  else
    ids = uniform(prompt)
  end
  for _, id in ipairs(ids) do
    reply[#reply + 1] = id
    reply[#reply + 1] = redis.call('HGET', PAYLOADS, id)
  end
end
count('drawn', groups * group_size)
return reply
