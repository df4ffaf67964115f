-- Shared by the scripts of the replay buffer, which are appended to this file one at a time.
--
-- KEYS[1] is the namespace; all keys below lie under it and share its hash tag, hence its slot.
--   payloads   hash  id -> wire bytes
--   meta       hash  id -> little-endian: double log R, uint32 reward version, length and name of the
--                    producer, then the token bytes (these only where near duplicates are looked for)
--   age        zset  id by version * 2^32 + arrival: the first one is the next to be evicted
--   prompts    zset  prompts that have trajectories, all with score 0, hence in order of name
--   age:P      zset  the part of `age` that belongs to prompt P
--   race:P     zset  id by the time it will next be drawn in the exponential race of prompt P
--   clocks     hash  P -> little-endian doubles: the race's time, reference log R
--   quarantined  hash  producer -> why nothing more is taken from it
--   counters   hash  received, inserted, merged, dropped, evicted, corrupt, drawn, held_bytes,
--                    arrivals, learner_version
--
-- An id is 16 characters for the prompt and 32 for the tokens.
--
-- The race: an id of weight w = exp(log R - reference) fires at times of a Poisson process of rate w.
-- Drawing takes the first to fire, so draws are independent, with replacement, with probability
-- proportional to w, at O(log N) each. All times are memoryless: whatever is re-armed at a time that
-- does not depend on the future may start afresh from there. The time is the race's own and moves by
-- draws alone; with a clock on the wall, ids would be overdue and fire in the order of their names.

local namespace = KEYS[1]
local PAYLOADS = namespace .. ':payloads'
local META = namespace .. ':meta'
local AGE = namespace .. ':age'
local PROMPTS = namespace .. ':prompts'
local CLOCKS = namespace .. ':clocks'
local COUNTERS = namespace .. ':counters'
local QUARANTINED = namespace .. ':quarantined'

local META_FORMAT = '<dI4I4c0'       -- the second length is that of the string, and is no value of its own
local VERSION_STEP = 4294967296      -- 2^32 arrivals a version; 2^21 versions stay exact in a double
local INDEX_BYTES_PER_TRAJECTORY = 600  -- as in admission.py; the index was measured to cost 500
local RACE_TIME_LIMIT = 1048576      -- 2^20: times keep a resolution of 1e-10
local REBASE_NATS = 5                -- a better log R up to here above the reference needs no rebase
local SMALLEST_LOG_WEIGHT = -600     -- below, exp() would underflow to 0 and times be infinite

local function prompt_of(id) return string.sub(id, 1, 16) end
local function age_of(prompt) return AGE .. ':' .. prompt end
local function race_of(prompt) return namespace .. ':race:' .. prompt end

local function counter(name) return tonumber(redis.call('HGET', COUNTERS, name) or '0') end
local function count(name, by) redis.call('HINCRBY', COUNTERS, name, by) end

-- Exp(1); math.random, in [0, 1), was seeded by the caller.
local function exponential() return -math.log(1 - math.random()) end

local function log_reward_of(id) return (struct.unpack('<d', redis.call('HGET', META, id))) end

local function read_clock(prompt)
  local packed = redis.call('HGET', CLOCKS, prompt)
  if not packed then return nil end
  local time, reference = struct.unpack('<dd', packed)
  return { time = time, reference = reference }
end

local function write_clock(prompt, clock)
  redis.call('HSET', CLOCKS, prompt, struct.pack('<dd', clock.time, clock.reference))
end

local function arm(prompt, id, log_reward, clock)
  local log_weight = math.max(log_reward - clock.reference, SMALLEST_LOG_WEIGHT)
  redis.call('ZADD', race_of(prompt), clock.time + exponential() / math.exp(log_weight), id)
end

-- Start the race of a prompt afresh at time 0, with the best log R present as reference: O(n).
local function rebase(prompt)
  local ids = redis.call('ZRANGE', age_of(prompt), 0, -1)
  local log_rewards, best = {}, -math.huge
  for i, id in ipairs(ids) do
    log_rewards[i] = log_reward_of(id)
    best = math.max(best, log_rewards[i])
  end
  local clock = { time = 0, reference = best }
  for i, id in ipairs(ids) do arm(prompt, id, log_rewards[i], clock) end
  write_clock(prompt, clock)
  return clock
end

-- (Re-)enter an id whose log R is known to be stored.
local function enter_race(prompt, id, log_reward)
  local clock = read_clock(prompt)
  if clock and log_reward <= clock.reference + REBASE_NATS then
    arm(prompt, id, log_reward, clock)
  else
    rebase(prompt)
  end
end

-- Deletes before it counts: with full memory Redis refuses a script's first write if it may need
-- some, and none after that.
local function remove(id)
  local prompt = prompt_of(id)
  local charge = redis.call('HSTRLEN', PAYLOADS, id) + INDEX_BYTES_PER_TRAJECTORY
  redis.call('HDEL', PAYLOADS, id)
  redis.call('HDEL', META, id)
  redis.call('ZREM', AGE, id)
  redis.call('ZREM', age_of(prompt), id)
  redis.call('ZREM', race_of(prompt), id)
  if redis.call('EXISTS', age_of(prompt)) == 0 then
    redis.call('ZREM', PROMPTS, prompt)
    redis.call('HDEL', CLOCKS, prompt)
  end
  count('held_bytes', -charge)
end

local function version_of(id) return math.floor(tonumber(redis.call('ZSCORE', AGE, id)) / VERSION_STEP) end

-- What the limiter looks at, in the order of the fields of limits.Flow.
local function read_flow()
  local newest = redis.call('ZREVRANGE', AGE, 0, 0)[1]
  return {
    received = counter('received'),
    drawn = counter('drawn'),
    stored = redis.call('ZCARD', AGE),
    newest_version = newest and version_of(newest) or 0,
    learner_version = counter('learner_version'),
  }
end

local function flow_reply(flow)
  return { flow.received, flow.drawn, flow.stored, flow.newest_version, flow.learner_version }
end

-- The conditions of limits.py, where they are explained.
local function data_are_missing(flow, slack, max_staleness, step)
  return flow.stored == 0
    or flow.received < math.min(step, slack)
    or flow.learner_version - flow.newest_version > max_staleness
end
