#pragma once

namespace nybble {

/// Whether every unit of a parallel region is done once, also where one thread takes over what another was given.
bool units_are_done_once();

}  // namespace nybble
