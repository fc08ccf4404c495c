#pragma once

#include <vector>

namespace nybble {

/// One processor of each physical core that this process may run on; empty where the system does not say.
std::vector<int> physical_cores();

}  // namespace nybble
