#pragma once

namespace nybble {

/// Whether every unit of a parallel region is done once, also where one thread takes over what another was given.
bool units_are_done_once();

/// Whether a thread fetches the beginning of its own share, all of it, and once.
bool shares_are_fetched_once();

}  // namespace nybble
