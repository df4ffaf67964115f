-- Shared by the scripts of the replay buffer, which are appended to this file one at a time.
--
-- KEYS[1] is the namespace; all keys below lie under it and share its hash tag, hence its slot.
--   payloads   hash  id -> wire bytes
--   meta       hash  id -> little-endian: double log R, uint32 reward version, length and name of the
--                    producer
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
local ARGUMENTS = 4000               -- of one command: Lua's stack holds 8,000; even, so pairs stay whole
local AHEAD = 32                     -- entries of an age index that are read at a time

local function prompt_of(id) return string.sub(id, 1, 16) end
local function age_of(prompt) return AGE .. ':' .. prompt end
local function race_of(prompt) return namespace .. ':race:' .. prompt end

local function counter(name) return tonumber(redis.call('HGET', COUNTERS, name) or '0') end
local function count(name, by)
  if by ~= 0 then redis.call('HINCRBY', COUNTERS, name, by) end
end

-- One command with any number of further arguments.
local function call(command, key, arguments)
  for first = 1, #arguments, ARGUMENTS do
    redis.call(command, key, unpack(arguments, first, math.min(first + ARGUMENTS - 1, #arguments)))
  end
end

-- Values of a hash, in the order of the fields; false where there is none.
local function values_of(key, fields)
  local values = {}
  for first = 1, #fields, ARGUMENTS do
    local last = math.min(first + ARGUMENTS - 1, #fields)
    for _, value in ipairs(redis.call('HMGET', key, unpack(fields, first, last))) do
      values[#values + 1] = value
    end
  end
  return values
end

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

-- When an id will fire, from the clock's time on.
local function firing(log_reward, clock)
  local log_weight = math.max(log_reward - clock.reference, SMALLEST_LOG_WEIGHT)
  return clock.time + exponential() / math.exp(log_weight)
end

-- Start the race of a prompt afresh at time 0, with the best log R present as reference: O(n).
local function rebase(prompt)
  local ids = redis.call('ZRANGE', age_of(prompt), 0, -1)
  local log_rewards, best = {}, -math.huge
  for i, meta in ipairs(values_of(META, ids)) do
    log_rewards[i] = struct.unpack('<d', meta)
    best = math.max(best, log_rewards[i])
  end
  local clock = { time = 0, reference = best }
  local armed = {}
  for i, id in ipairs(ids) do
    armed[2 * i - 1], armed[2 * i] = firing(log_rewards[i], clock), id
  end
  call('ZADD', race_of(prompt), armed)
  write_clock(prompt, clock)
  return clock
end

-- What holding an id is charged at, in bytes.
local function charge_of(id) return redis.call('HSTRLEN', PAYLOADS, id) + INDEX_BYTES_PER_TRAJECTORY end

-- Only deletes: with full memory Redis refuses a script's first write if it may need some, and none
-- after that. What the ids were charged is for the caller to count, afterwards.
local function remove_all(ids)
  if #ids == 0 then return end
  local of_prompt = {}
  for _, id in ipairs(ids) do
    local prompt = prompt_of(id)
    of_prompt[prompt] = of_prompt[prompt] or {}
    table.insert(of_prompt[prompt], id)
  end
  call('HDEL', PAYLOADS, ids)
  call('HDEL', META, ids)
  call('ZREM', AGE, ids)
  for prompt, of_this in pairs(of_prompt) do
    call('ZREM', age_of(prompt), of_this)
    call('ZREM', race_of(prompt), of_this)
    if redis.call('EXISTS', age_of(prompt)) == 0 then
      redis.call('ZREM', PROMPTS, prompt)
      redis.call('HDEL', CLOCKS, prompt)
    end
  end
end

local function version_of(id) return math.floor(tonumber(redis.call('ZSCORE', AGE, id)) / VERSION_STEP) end

-- Ids of an age index as they stand before the script writes, oldest first, each with its age.
local function oldest_first(key)
  local rank, found, at = 0, {}, 1
  return function()
    if at > #found then
      found, at = redis.call('ZRANGE', key, rank, rank + AHEAD - 1, 'WITHSCORES'), 1
      rank = rank + AHEAD
    end
    local id, age = found[at], tonumber(found[at + 1])
    at = at + 2
    return id, age
  end
end

-- What the limiter looks at, in the order of the fields of limits.Flow.
local function read_flow()
  local newest = redis.call('ZREVRANGE', AGE, 0, 0, 'WITHSCORES')
  local received, drawn, learner_version =
    unpack(redis.call('HMGET', COUNTERS, 'received', 'drawn', 'learner_version'))
  return {
    received = tonumber(received or 0),
    drawn = tonumber(drawn or 0),
    stored = redis.call('ZCARD', AGE),
    newest_version = math.floor(tonumber(newest[2] or 0) / VERSION_STEP),
    learner_version = tonumber(learner_version or 0),
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
