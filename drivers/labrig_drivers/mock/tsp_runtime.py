"""The Lua side of the TSP interpreter: the sandbox in which scripts run, and how they are started and stepped."""

from __future__ import annotations

from typing import Final

RUNTIME: Final = r"""
local emit, take_trigger, pieces
local handles = setmetatable({}, {__mode = "k"})
-- A script that never waits would keep everything else from running; the instrument would do so, too.
local MOST_HOOKS, HOOK_EVERY = 200, 100000
local hooks = 0

local function copied(from, names)
  local to = {}
  for _, name in ipairs(names) do to[name] = from[name] end
  return to
end

-- What Lua 5.0 has and what cannot leave the instrument.
local env = copied(_G, {"ipairs", "next", "pairs", "pcall", "error", "tonumber", "tostring", "type", "unpack"})
env.string = copied(string, {"byte", "char", "find", "format", "gsub", "len", "lower", "rep", "sub", "upper"})
env.table = copied(table, {"concat", "getn", "insert", "remove", "sort"})
env.math = copied(math, {"abs", "ceil", "cos", "exp", "floor", "log", "log10", "max", "min", "pi", "pow", "sin",
                         "sqrt", "tan"})
env.math.mod = math.fmod
env._G = env

local function passed(...)
  local values = {...}
  for index = 1, select("#", ...) do values[index] = handles[values[index]] or values[index] end
  return unpack(values, 1, select("#", ...))
end

local function pause(seconds, waits)
  coroutine.yield(seconds, waits)
end

function env.print(...) emit(...) end

env.trigger = {}
function env.trigger.wait(timeout)
  if take_trigger() then return true end
  local count = pieces(timeout)
  for _ = 1, count do
    pause(timeout / count, true)
    if take_trigger() then return true end
  end
  return false
end
function env.trigger.clear() take_trigger() end

local host = {}

function host.define(name, part) env[name] = part end

function host.keep(print_function, trigger_function, pieces_function)
  emit, take_trigger, pieces = print_function, trigger_function, pieces_function
end

function host.plain(f) return function(...) return f(passed(...)) end end

function host.timed(begin, finish)
  return function(...)
    local seconds, token = begin(passed(...))
    if seconds == nil then return nil end
    pause(seconds, false)
    return finish(token)
  end
end

function host.table() return {} end

function host.put(made, name, part) made[name] = part end

function host.object(get, put, fixed, handle)
  local made = setmetatable({}, {
    __index = function(_, name)
      local found = fixed and fixed[name]
      if found ~= nil then return found end
      return get(name)
    end,
    __newindex = function(_, name, value)
      local fault = put(name, value)
      if fault then error(fault, 2) end
    end,
  })
  if handle ~= "" then handles[made] = handle end
  return made
end

local function overrun()
  hooks = hooks + 1
  if hooks > MOST_HOOKS then error("the simulator gives up on a script that never waits", 2) end
end

local function stepper(chunk)
  local co = coroutine.create(chunk)
  debug.sethook(co, overrun, "", HOOK_EVERY)
  return function()
    hooks = 0
    local ok, value, waits = coroutine.resume(co)
    if not ok then return "fails", tostring(value), false end
    if coroutine.status(co) == "dead" then return "ended", 0, false end
    return "pauses", value, waits
  end
end

function host.compile(source)
  local chunk, fault = loadstring(source, "=tsp")
  if chunk == nil then return nil, fault end
  return stepper(setfenv(chunk, env)), ""
end

function host.store(name, source)
  local chunk = loadstring(source, "=tsp")
  if chunk then setfenv(chunk, env) end
  env[name] = setmetatable({run = chunk}, {__call = function() return chunk() end})
end

return host
"""
"""Run once in a new Lua; returns a table of functions for the interpreter."""
