-- A snapshot of the counters. A script, because Redis refuses transactions when its memory is full.
--
-- Reply: flow…, prompts, held bytes, inserted, merged, dropped, evicted, corrupt.

local reply = flow_reply(read_flow())
reply[#reply + 1] = redis.call('ZCARD', PROMPTS)
for _, name in ipairs({ 'held_bytes', 'inserted', 'merged', 'dropped', 'evicted', 'corrupt' }) do
  reply[#reply + 1] = counter(name)
end
return reply
