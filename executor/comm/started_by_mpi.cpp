#include <cstdlib>

#include "executor/comm/transports.hpp"

namespace shardwright {

bool startedByMpi()
{
    // Set for every process by OpenMPI's mpirun, and by launchers that speak PMI (MPICH, Slurm's srun --mpi).
    return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_RANK") != nullptr;
}

} // namespace shardwright
