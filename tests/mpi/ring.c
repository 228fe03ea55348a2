/* An MPI program: a token goes round all ranks, what each has is summed up, and rank 0 says how many there are, and how
 * many share its node. usage: ring [abort RANK CODE | leave RANK | die RANK] */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, size, here, token = 0, sum = 0;
    MPI_Comm node;
    if (argc > 2 && !strcmp(argv[1], "leave") && atoi(argv[2]) == atoi(getenv("SLURM_PROCID")))
        return 3;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc > 3 && !strcmp(argv[1], "abort")) {
        /* Who is still beginning would find this one gone, and abort as well; the second time all are connected. */
        MPI_Barrier(MPI_COMM_WORLD);
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank == atoi(argv[2]))
            MPI_Abort(MPI_COMM_WORLD, atoi(argv[3]));
        for (;;)
            pause();
    }
    if (argc > 2 && !strcmp(argv[1], "die") && rank == atoi(argv[2]))
        raise(SIGKILL);
    if (size > 1) {
        int next = (rank + 1) % size, before = (rank + size - 1) % size;
        if (rank == 0) {
            token = 1;
            MPI_Send(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD);
            MPI_Recv(&token, 1, MPI_INT, before, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(&token, 1, MPI_INT, before, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            token++;
            MPI_Send(&token, 1, MPI_INT, next, 0, MPI_COMM_WORLD);
        }
    } else {
        token = 1;
    }
    rank++;
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &here);
    if (rank == 1)
        printf("ranks %d token %d sum %d here %d\n", size, token, sum, here);
    MPI_Finalize();
    return 0;
}
