#pragma once

#include <vector>

namespace nybble {

/// One processor of each physical core that the first thread to ask may run on; empty where the system does not say.
const std::vector<int>& physical_cores();

}  // namespace nybble
