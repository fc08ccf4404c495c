#include "physical_cores.h"

#include <sched.h>

#include <fstream>
#include <set>
#include <string>

namespace nybble {

namespace {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// By what the calling thread may run on.
std::vector<int> find_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return {};
  std::set<std::string> seen;
  std::vector<int> processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const std::string siblings = read_line(topology + "thread_siblings_list");
    if (seen.insert(siblings.empty() ? std::to_string(cpu) : siblings).second) processors.push_back(cpu);
  }
  return processors;
}

}  // namespace

const std::vector<int>& physical_cores() {
  static const std::vector<int> cores = find_cores();
  return cores;
}

}  // namespace nybble
