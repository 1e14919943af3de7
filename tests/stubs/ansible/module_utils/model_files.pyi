from model_files import *
