/* A PKCS#11 module in front of another one, for tests: it writes down what is called, and fails, waits
 * or treats IVs as the file $WAXSEAL_SHIM_CONTROL says at the time of the call. A line of it is one of
 *
 *   FUNCTION rv CODE ID TIMES   returns CODE instead, TIMES times for each ID (0: always)
 *   FUNCTION fails-behind OTHER CODE
 *                               returns CODE from the first call of OTHER on
 *   FUNCTION sleep MILLISECONDS waits before
 *   login masked                returns CKR_GENERAL_ERROR for a wrong PIN
 *   login silent                also never says that a PIN was counted as wrong
 *   FUNCTION crash              ends the process by a signal of its own (abort)
 *   FUNCTION segv               reads where nothing is
 *   any segv N                  the same at the N-th call of this process, whatever is called
 *   FUNCTION exit               ends the process in order
 *   FUNCTION hang               never returns
 *   sessions N                  has no more than N sessions
 *   iv token                    makes the IV itself and writes it into the caller's buffer, which has to be zero
 *   iv appended                 makes the IV itself, and appends its 16 bytes to the output
 *   iv replaced                 makes the IV itself, whatever the caller's buffer has, and writes it there
 *   iv repeated                 makes the IV itself, always the same, and writes it into the caller's buffer
 *   iv ignored                  uses one of its own, always the same, both ways, whatever the caller's buffer has
 *   aad ignored                 encrypts and decrypts without the additional data
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*function_t)();

struct list { unsigned char version[2]; function_t functions[68]; };
struct mechanism { ulong_t type; void *parameter; ulong_t length; };
struct gcm { unsigned char *iv; ulong_t iv_len, iv_bits; unsigned char *aad; ulong_t aad_len, tag_bits; };

enum { INITIALIZE = 0, FINALIZE = 1, GET_FUNCTION_LIST = 3, SLOT_LIST = 4, TOKEN_INFO = 6, OPEN = 12, CLOSE = 13,
       SESSION_INFO = 15, LOGIN = 18, ATTRIBUTE_VALUE = 24, FIND = 26, ENCRYPT_INIT = 29, ENCRYPT = 30,
       DECRYPT_INIT = 33, DECRYPT = 34, GENERATE_KEY = 58, RANDOM = 64 };
enum { AES_GCM = 0x1087, ARGUMENTS_BAD = 7, SESSION_COUNT = 0xB1, APPENDED = 16 };
/* In CK_TOKEN_INFO, behind label, manufacturer, model and serial number. */
enum { FLAGS_AT = 96, COUNT_LOW = 0x10000, FINAL_TRY = 0x20000, PIN_LOCKED = 0x40000 };

static struct list real, ours;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long open_sessions;
/* What was appended or replaced, by session. */
static struct { ulong_t session; unsigned char iv[APPENDED]; } ivs[256];
static struct { char id[32]; int times; } used[256];

static void log_call(const char *name) {
    const char *path = getenv("WAXSEAL_SHIM_LOG");
    char line[64];
    int file, length = snprintf(line, sizeof line, "%s\n", name);
    if (!path || (file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600)) < 0) return;
    if (write(file, line, (size_t)length) < 0) abort();
    close(file);
}

/* Looks for a line that begins with these words, and copies what follows. */
static int control(const char *first, const char *second, char *rest, size_t size) {
    const char *path = getenv("WAXSEAL_SHIM_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], one[64], two[64];
    int found = 0, at;
    if (!file) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        if (sscanf(line, "%63s %63s%n", one, two, &at) < 2) continue;
        found = !strcmp(one, first) && !strcmp(two, second);
        if (found && rest) snprintf(rest, size, "%s", line + at);
    }
    fclose(file);
    return found;
}

/* Whether the control file's present content saw a call of this function. */
static int was_called(const char *name) {
    const char *log = getenv("WAXSEAL_SHIM_LOG"), *path = getenv("WAXSEAL_SHIM_CONTROL");
    struct stat told;
    FILE *file = log ? fopen(log, "r") : NULL;
    char line[64];
    int found = 0;
    static ino_t seen;
    static long lines_before;
    long lines = 0;
    if (!file) return 0;
    if (path && !stat(path, &told) && told.st_ino != seen) {
        seen = told.st_ino;
        while (fgets(line, sizeof line, file)) lines++;
        lines_before = lines;
        rewind(file);
        lines = 0;
    }
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found = lines++ >= lines_before && !strcmp(line, name);
    }
    fclose(file);
    return found;
}

/* What has to be returned instead of calling, or 0. */
static ulong_t before(const char *name) {
    char rest[256], id[32] = "";
    ulong_t code = 0;
    int times = 0, i, fails = 0, call;
    static int calls;
    log_call(name);
    call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (control("any", "segv", rest, sizeof rest) && atoi(rest) == call) code = *(volatile ulong_t *)8;
    if (control(name, "sleep", rest, sizeof rest)) usleep((useconds_t)atoi(rest) * 1000);
    if (control(name, "crash", NULL, 0)) abort();
    if (control(name, "segv", NULL, 0)) code = *(volatile ulong_t *)8;
    if (control(name, "exit", NULL, 0)) exit(0);
    while (control(name, "hang", NULL, 0)) sleep(1000);
    if (control(name, "fails-behind", rest, sizeof rest) && sscanf(rest, "%31s %li", id, (long *)&code) == 2
        && was_called(id)) return code;
    code = 0;
    if (!control(name, "rv", rest, sizeof rest)) return 0;
    if (sscanf(rest, "%li %31s %d", (long *)&code, id, &times) < 1) abort();
    if (times == 0) return code;
    pthread_mutex_lock(&lock);
    for (i = 0; i < 256 && used[i].id[0] && strcmp(used[i].id, id); i++) {}
    if (i < 256) {
        snprintf(used[i].id, sizeof used[i].id, "%s", id);
        fails = used[i].times++ < times;
    }
    pthread_mutex_unlock(&lock);
    return fails ? code : 0;
}

#define BEFORE(name) do { ulong_t code = before(name); if (code) return code; } while (0)

static ulong_t initialize(void *arguments) { BEFORE("C_Initialize"); return real.functions[INITIALIZE](arguments); }
static ulong_t finalize(void *reserved) {
    BEFORE("C_Finalize");
    open_sessions = 0;
    return real.functions[FINALIZE](reserved);
}
static ulong_t slot_list(unsigned char present, ulong_t *slots, ulong_t *count) {
    BEFORE("C_GetSlotList");
    return real.functions[SLOT_LIST]((int)present, slots, count);
}
static ulong_t token_info(ulong_t slot, void *info) {
    ulong_t code, flags;
    BEFORE("C_GetTokenInfo");
    code = real.functions[TOKEN_INFO](slot, info);
    if (!code && control("login", "silent", NULL, 0)) {
        memcpy(&flags, (char *)info + FLAGS_AT, sizeof flags);
        flags &= ~(ulong_t)(COUNT_LOW | FINAL_TRY | PIN_LOCKED);
        memcpy((char *)info + FLAGS_AT, &flags, sizeof flags);
    }
    return code;
}
static ulong_t open_session(ulong_t slot, ulong_t flags, void *application, void *notify, ulong_t *session) {
    char one[64], rest[256];
    const char *path = getenv("WAXSEAL_SHIM_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    long most = -1;
    ulong_t code;
    BEFORE("C_OpenSession");
    while (file && fgets(rest, sizeof rest, file)) {
        if (sscanf(rest, "%63s", one) == 1 && !strcmp(one, "sessions")) most = atol(rest + 8);
    }
    if (file) fclose(file);
    pthread_mutex_lock(&lock);
    code = most >= 0 && open_sessions >= most ? SESSION_COUNT : 0;
    if (!code) code = real.functions[OPEN](slot, flags, application, notify, session);
    if (!code) open_sessions++;
    pthread_mutex_unlock(&lock);
    return code;
}
static ulong_t close_session(ulong_t session) {
    ulong_t code;
    BEFORE("C_CloseSession");
    code = real.functions[CLOSE](session);
    pthread_mutex_lock(&lock);
    if (!code) open_sessions--;
    pthread_mutex_unlock(&lock);
    return code;
}
static ulong_t session_info(ulong_t session, void *info) { BEFORE("C_GetSessionInfo"); return real.functions[SESSION_INFO](session, info); }
static ulong_t login(ulong_t session, ulong_t user, void *pin, ulong_t length) {
    ulong_t code;
    BEFORE("C_Login");
    code = real.functions[LOGIN](session, user, pin, length);
    return code && (control("login", "masked", NULL, 0) || control("login", "silent", NULL, 0)) ? 5 : code;
}
static ulong_t attribute_value(ulong_t session, ulong_t object, void *attributes, ulong_t count) {
    BEFORE("C_GetAttributeValue");
    return real.functions[ATTRIBUTE_VALUE](session, object, attributes, count);
}
static ulong_t find(ulong_t session, void *attributes, ulong_t count) {
    BEFORE("C_FindObjectsInit");
    return real.functions[FIND](session, attributes, count);
}

static unsigned char *iv_of(ulong_t session) {
    int i;
    pthread_mutex_lock(&lock);
    for (i = 0; i < 255 && ivs[i].session && ivs[i].session != session; i++) {}
    ivs[i].session = session;
    pthread_mutex_unlock(&lock);
    return ivs[i].iv;
}

static ulong_t encrypt_init(ulong_t session, struct mechanism *mechanism, ulong_t key) {
    struct gcm own;
    struct mechanism changed;
    static const unsigned char zeros[256];
    static unsigned char always[256] = {7};
    BEFORE("C_EncryptInit");
    if (mechanism->type != AES_GCM) return real.functions[ENCRYPT_INIT](session, mechanism, key);
    own = *(struct gcm *)mechanism->parameter;
    changed = *mechanism;
    changed.parameter = &own;
    if (control("aad", "ignored", NULL, 0)) own.aad_len = 0;
    if (control("iv", "repeated", NULL, 0)) memset(own.iv, 7, own.iv_len);
    if (control("iv", "ignored", NULL, 0)) own.iv = always;
    if (control("iv", "token", NULL, 0) && memcmp(own.iv, zeros, own.iv_len)) return ARGUMENTS_BAD;
    if (control("iv", "token", NULL, 0) || control("iv", "replaced", NULL, 0)) {
        if (getrandom(own.iv, own.iv_len, 0) < 0) abort();
    }
    if (control("iv", "appended", NULL, 0)) {
        own.iv = iv_of(session);
        own.iv_len = APPENDED;
        own.iv_bits = APPENDED * 8;
        if (getrandom(own.iv, APPENDED, 0) < 0) abort();
    }
    return real.functions[ENCRYPT_INIT](session, &changed, key);
}
static ulong_t encrypt(ulong_t session, void *data, ulong_t length, unsigned char *output, ulong_t *output_length) {
    ulong_t code, room = *output_length;
    BEFORE("C_Encrypt");
    code = real.functions[ENCRYPT](session, data, length, output, output_length);
    if (!code && control("iv", "appended", NULL, 0)) {
        if (output && *output_length + APPENDED <= room) memcpy(output + *output_length, iv_of(session), APPENDED);
        *output_length += APPENDED;
    }
    return code;
}
static ulong_t decrypt_init(ulong_t session, struct mechanism *mechanism, ulong_t key) {
    struct gcm own;
    struct mechanism changed = *mechanism;
    static unsigned char always[256] = {7};
    BEFORE("C_DecryptInit");
    if (mechanism->type == AES_GCM && control("iv", "ignored", NULL, 0)) {
        own = *(struct gcm *)mechanism->parameter;
        own.iv = always;
        changed.parameter = &own;
        return real.functions[DECRYPT_INIT](session, &changed, key);
    }
    if (mechanism->type == AES_GCM && control("aad", "ignored", NULL, 0)) {
        own = *(struct gcm *)mechanism->parameter;
        own.aad_len = 0;
        changed.parameter = &own;
    }
    return real.functions[DECRYPT_INIT](session, &changed, key);
}
static ulong_t decrypt(ulong_t session, void *data, ulong_t length, void *output, ulong_t *output_length) {
    BEFORE("C_Decrypt");
    return real.functions[DECRYPT](session, data, length, output, output_length);
}
static ulong_t generate_key(ulong_t session, void *mechanism, void *attributes, ulong_t count, ulong_t *key) {
    BEFORE("C_GenerateKey");
    return real.functions[GENERATE_KEY](session, mechanism, attributes, count, key);
}
static ulong_t generate_random(ulong_t session, void *data, ulong_t length) {
    BEFORE("C_GenerateRandom");
    return real.functions[RANDOM](session, data, length);
}

ulong_t C_GetFunctionList(struct list **list) {
    static int is_loaded;
    struct list *theirs;
    pthread_mutex_lock(&lock);
    if (!is_loaded) {
        const char *path = getenv("WAXSEAL_SHIM_MODULE");
        void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        function_t get = module ? (function_t)dlsym(module, "C_GetFunctionList") : NULL;
        if (!get || get(&theirs)) {
            pthread_mutex_unlock(&lock);
            return 5;
        }
        real = ours = *theirs;
        ours.version[0] = 2;
        ours.version[1] = 40;
        ours.functions[INITIALIZE] = (function_t)initialize;
        ours.functions[FINALIZE] = (function_t)finalize;
        ours.functions[GET_FUNCTION_LIST] = (function_t)C_GetFunctionList;
        ours.functions[SLOT_LIST] = (function_t)slot_list;
        ours.functions[TOKEN_INFO] = (function_t)token_info;
        ours.functions[OPEN] = (function_t)open_session;
        ours.functions[CLOSE] = (function_t)close_session;
        ours.functions[SESSION_INFO] = (function_t)session_info;
        ours.functions[LOGIN] = (function_t)login;
        ours.functions[ATTRIBUTE_VALUE] = (function_t)attribute_value;
        ours.functions[FIND] = (function_t)find;
        ours.functions[ENCRYPT_INIT] = (function_t)encrypt_init;
        ours.functions[ENCRYPT] = (function_t)encrypt;
        ours.functions[DECRYPT_INIT] = (function_t)decrypt_init;
        ours.functions[DECRYPT] = (function_t)decrypt;
        ours.functions[GENERATE_KEY] = (function_t)generate_key;
        ours.functions[RANDOM] = (function_t)generate_random;
        is_loaded = 1;
    }
    pthread_mutex_unlock(&lock);
    *list = &ours;
    return 0;
}
