-- The components that beat. A script, because a cluster takes no TIME in a pipeline, and because Redis
-- refuses transactions when its memory is full.
--
-- KEYS: namespace. Reply: seconds, microseconds, {component, time of its beat, …}, {component, state, …}.

local now = redis.call('TIME')
return {
  now[1], now[2], redis.call('HGETALL', KEYS[1] .. ':beats'), redis.call('HGETALL', KEYS[1] .. ':components'),
}
