#pragma once

// Where the files that ship with Shardwright are: models/ and scenarios/.

#include <string>
#include <vector>

namespace shardwright {

/// The folder that holds models/ and scenarios/: $SHARDWRIGHT_HOME, else the nearest folder upwards of the executable
/// that holds both, else the source tree the program was built from. EnvironmentError when there is none.
std::string homeFolder();

/// The ids of models that ship: the folders of models/ that hold a config.json, sorted.
std::vector<std::string> modelIds();

/// The ids of clusters that ship: scenarios/clusters/*.json without the ending, sorted.
std::vector<std::string> clusterIds();

} // namespace shardwright
