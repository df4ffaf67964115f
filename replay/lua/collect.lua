-- Delete keys of a run, unless it lives: its driver holds it, or a component has beaten of late.
--
-- KEYS: namespace of the registry, then the keys, which share its slot. ARGV: seconds that a beat counts.
-- Reply: {number deleted, 1 if it lives, seconds since the last beat or -1, 1 if its registry is here}.

local now = redis.call('TIME')
local youngest = -1
for _, beat in ipairs(redis.call('HVALS', KEYS[1] .. ':beats')) do
  local age = math.max(0, tonumber(now[1]) + tonumber(now[2]) / 1000000 - tonumber(beat))
  if youngest < 0 or age < youngest then youngest = age end
end
local lives = redis.call('EXISTS', KEYS[1] .. ':lease') == 1
  or (youngest >= 0 and youngest < tonumber(ARGV[1]))
local known = redis.call('EXISTS', KEYS[1] .. ':owner')
local deleted = 0
if not lives then
  for i = 2, #KEYS do deleted = deleted + redis.call('UNLINK', KEYS[i]) end
end
return { deleted, lives and 1 or 0, string.format('%.3f', youngest), known }
