/* A program that speaks PMI-2 by Slurm's own library: every rank puts a key, and reads those of all after the fence.
 * usage: keys [spawn | plain]; plain: without the characters by which PMI-2 divides its words, which Slurm's server does not take */
#include <slurm/pmi2.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    int spawned, size, rank, appnum, length, found;
    char job[256], key[64], value[1024], wanted[64];
    if (PMI2_Init(&spawned, &size, &rank, &appnum) || PMI2_Job_GetId(job, sizeof job))
        return 10;
    if (argc > 1 && !strcmp(argv[1], "spawn")) {
        const char *programs[] = {"true"};
        const char **words[] = {NULL};
        int counts[] = {0}, ranks[] = {1}, sizes[] = {0}, errors[1];
        const struct MPID_Info *infos[] = {NULL};
        int rc = PMI2_Job_Spawn(1, programs, counts, words, ranks, sizes, infos, 0, NULL, job, sizeof job, errors);
        printf("spawn: %s\n", rc ? "refused" : "done");
        return PMI2_Finalize() ? 15 : 0;
    }
    const char *form = argc > 1 && !strcmp(argv[1], "plain") ? "value-of-%d" : "value;of=%d;";
    snprintf(key, sizeof key, "key-%d", rank);
    snprintf(value, sizeof value, form, rank);
    if (PMI2_KVS_Put(key, value) || PMI2_KVS_Fence())
        return 11;
    for (int other = 0; other < size; other++) {
        snprintf(key, sizeof key, "key-%d", other);
        snprintf(wanted, sizeof wanted, form, other);
        if (PMI2_KVS_Get(job, PMI2_ID_NULL, key, value, sizeof value, &length) || strcmp(value, wanted))
            return 12;
    }
    if (PMI2_Info_GetJobAttr("PMI_process_mapping", value, sizeof value, &found) || !found)
        return 13;
    if (rank == 0)
        printf("%d of %s: %s\n", size, job, value);
    /* The first rank of a node tells the others, which wait for it. */
    if (PMI2_Info_PutNodeAttr("here", "yes") || PMI2_Info_GetNodeAttr("here", value, sizeof value, &found, 1) || !found)
        return 14;
    return PMI2_Finalize() ? 15 : 0;
}
