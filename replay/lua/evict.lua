-- Make room: remove the oldest, none of a version above a bound.
--
-- ARGV: bytes to free at least, largest version that may go. Reply: bytes freed, number removed.

local wanted, newest = tonumber(ARGV[1]), tonumber(ARGV[2])
local freed, victims = 0, {}
for id, age in oldest_first(AGE) do
  if freed >= wanted or math.floor(age / VERSION_STEP) > newest then break end
  freed = freed + charge_of(id)
  victims[#victims + 1] = id
end
remove_all(victims)
count('held_bytes', -freed)
count('evicted', #victims)
return { freed, #victims }
